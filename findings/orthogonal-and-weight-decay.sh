#!/usr/bin/env bash
# Weight decay on a layer whose rows torch keeps orthonormal (`nn.utils.parametrizations.orthogonal`), as the rotation
# of LoReFT and other low-rank adapters with an orthonormal factor are written.
#
# Guess before running: the parametrization makes orthonormal rows of whatever the optimizer leaves in its parameter, so
# weight decay may slow the layer down and cannot shrink it.
#
# Seen (torch 2.13.0): after one step the weight is all zeros, for AdamW, Adam and SGD alike, however small the decay,
# as long as it moves -1 at all. For every weight that is not square the default is the Householder map. It keeps the
# signs of the columns as 1 and -1 on the diagonal of the parameter that trains, cuts them to whole numbers in each
# forward, and lets no gradient through; decay turns -1 into -0.9999..., which is cut to 0. The layer's gradient is 0 from
# then on as well: nothing says so, and an adapter that ends in it does nothing. Without decay, for square weights
# and with orthogonal_map="matrix_exp" or "cayley" the rows stay orthonormal.
#
# So a LoReFT that is written so must not train with weight decay on that parameter (a Trainer's decays all but biases
# and norms): name another map, or put it in a group without decay.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

ROWS, WIDTH, STEPS = 4, 64, 3


def trained(optimizer, rows=ROWS, **settings):
    """The layer after a few steps of making its outputs like those of another one."""
    torch.manual_seed(0)
    layer = orthogonal(nn.Linear(WIDTH, rows, bias=False), **settings)
    goal = nn.init.orthogonal_(torch.empty(rows, WIDTH))
    x = torch.randn(32, WIDTH)
    step = optimizer(layer.parameters())
    for _ in range(STEPS):
        step.zero_grad()
        (layer(x) - x @ goal.T).square().mean().backward()
        step.step()
    return layer


def off(layer):
    """How far its rows are from orthonormal ones."""
    weight = layer.weight.detach()
    return (weight @ weight.T - torch.eye(len(weight))).abs().max().item()


for name, make in {
    "AdamW": lambda p, decay: torch.optim.AdamW(p, lr=1e-3, weight_decay=decay),
    "Adam": lambda p, decay: torch.optim.Adam(p, lr=1e-3, weight_decay=decay),
    "SGD": lambda p, decay: torch.optim.SGD(p, lr=1e-3, weight_decay=decay),
}.items():
    plain, decayed = (trained(lambda p, decay=decay: make(p, decay)) for decay in (0.0, 0.01))
    sizes = [layer.weight.abs().max().item() for layer in (plain, decayed)]
    print(f"{name}: largest |weight| without decay and with it:", sizes)
    assert off(plain) < 1e-5
    assert torch.count_nonzero(decayed.weight) == 0
    assert torch.count_nonzero(decayed.parametrizations.weight.original.grad) == 0, "and it never comes back"

with_decay = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01)  # noqa: E731
assert torch.count_nonzero(trained(lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-4)).weight) == 0
for settings in ({"orthogonal_map": "matrix_exp"}, {"orthogonal_map": "cayley"}, {"rows": WIDTH}):
    kept = trained(with_decay, **settings)
    print(settings, f"with decay: off orthonormal by {off(kept):.1e}")
    assert off(kept) < 1e-5
print("torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
