#!/usr/bin/env bash
# torch, a frozen weight that is changed in place between the forward and the backward pass: who notices?
#
# Guess before running: both ways. A layer that saved the weight compares its version and raises. A checkpointed
# layer (use_reentrant=False) records what its forward pass used and compares what recomputing gives, so it raises as
# well: "a different ... was found during recomputation".
#
# Seen (torch 2.13.0): the plain layer raises. The checkpointed one says nothing: what is compared is the number of
# saved tensors, and their shapes, types and devices, not their values. The gradient is that of neither
# model: it went forward by the old weight and came back through the new one. With early_stop off, and with
# use_reentrant=True, it is the same.
#
# So whoever folds deltas or adapters into the weights while a step is under way gets an error without gradient
# checkpointing and a wrong gradient with it.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop


def gradient(recomputed, change, reentrant=False, early=True):
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8, bias=False).requires_grad_(False)
    x = torch.randn(4, 8, requires_grad=True)

    def block(t):
        return torch.tanh(layer(t))

    with set_checkpoint_early_stop(early):
        out = checkpoint(block, x, use_reentrant=reentrant) if recomputed else block(x)
        if change:
            layer.weight.mul_(2)
        out.sum().backward()
    return x.grad


try:
    gradient(False, True)
except RuntimeError as error:
    print("saved:", str(error).split(":")[0])
else:
    raise SystemExit("the plain layer raises nothing")
right = gradient(True, False)
assert torch.equal(right, gradient(False, False))
for how in ({}, {"early": False}, {"reentrant": True}):
    wrong = gradient(True, True, **how)
    off = float((wrong - right).abs().max() / right.abs().max())
    print("recomputed", how, f"no error; the gradient is off by {off:.2f} of its largest entry")
    assert off > 0.1
print("torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
