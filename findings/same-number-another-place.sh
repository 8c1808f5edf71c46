#!/usr/bin/env bash
# One number at a time: does what an elementwise function, or AdamW, makes of a number depend on where it stands?
#
# Guess before running: no. Elementwise is elementwise; equal numbers come out equal, whatever their place, their
# neighbours and the layout of the tensor. What depends on a batch are sums: matrix products, norms, softmax.
#
# Seen (torch 2.13.0, CPU, x86): yes, in the last bit. The rows of a tensor are worked through in vectors, and what is
# left at an end goes another way: silu, sigmoid and rsqrt of a row by itself are not those of the same row within its
# batch, though no row looks at another. Over a strided view (every other column) most of gelu's results, and
# more than a quarter of rsqrt's in bf16, differ from those of its contiguous copy. Fused AdamW, gradients, moments and
# settings equal, takes a parameter at the end of its tensor to another value than the same one at the beginning.
#
# So bit-equal answers in other batches, bit-equal trainings with a tensor cut into shards or joined with others, and
# tied weights that are kept twice and updated alike are not to be had by making the sums deterministic.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import torch
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
ROWS, COLUMNS = 400, 67  # no multiple of a vector


def counts(function, dtype):
    """How many results differ: rows by themselves, and a strided view from its copy."""
    x = (torch.randn(ROWS, COLUMNS).abs() + 0.01).to(dtype)
    alone = torch.stack([function(row.clone()) for row in x])
    view = x[:, ::2]
    return int((alone != function(x)).sum()), int((function(view) != function(view.contiguous())).sum())


seen = {
    "silu, fp32": counts(F.silu, torch.float32),
    "sigmoid, fp32": counts(torch.sigmoid, torch.float32),
    "gelu, fp32": counts(F.gelu, torch.float32),
    "rsqrt, bf16": counts(torch.rsqrt, torch.bfloat16),
    "relu, fp32": counts(F.relu, torch.float32),
}
for what, (alone, strided) in seen.items():
    print(f"{what}: of {ROWS * COLUMNS} results {alone} differ by row, {strided} of {ROWS * 34} in a strided view")
for what in ("silu, fp32", "sigmoid, fp32", "rsqrt, bf16"):
    assert seen[what][0] > 0
assert seen["gelu, fp32"][1] > ROWS * 34 // 2 and seen["rsqrt, bf16"][1] > ROWS * 34 // 4
assert seen["relu, fp32"] == (0, 0)


def adamw(place, start, gradients, **settings):
    """One parameter after three steps, among others at `place`."""
    parameter = torch.nn.Parameter(torch.full((COLUMNS,), 0.5))
    parameter.data[place] = start
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, **settings)
    for gradient in gradients:
        parameter.grad = torch.full((COLUMNS,), 0.1)
        parameter.grad[place] = gradient
        optimizer.step()
    return parameter[place].item()


differ = 0
for _ in range(400):
    start, *gradients = torch.randn(4).tolist()
    differ += adamw(0, start, gradients, fused=True) != adamw(COLUMNS - 1, start, gradients, fused=True)
print(f"fused AdamW: {differ} of 400 numbers end elsewhere at the end of a tensor than at its beginning")
assert differ > 0
print("torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
