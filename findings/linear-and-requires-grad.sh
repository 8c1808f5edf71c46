#!/usr/bin/env bash
# torch on a CPU, under torch.no_grad(): do the bits of nn.Linear depend on whether its weight requires a gradient?
#
# Guess before running: no. Under no_grad nothing is recorded, `requires_grad` of a parameter is only a mark for
# autograd, and which kernel multiplies follows from shapes, strides and types.
#
# Seen (torch 2.13.0): yes, where the input is 3-D and not contiguous (a layer that is given `x.transpose(0, 1)`, as
# LED's encoder does). `linear` then goes through `matmul`, which folds the batch into one product if a factor
# *requires* a gradient, whatever the mode, and multiplies batch by batch otherwise: of five shapes two differ in the last
# bits, and none where the input is contiguous.
#
# So a model whose weights are frozen and the same model as it was loaded (weights require gradients) may differ in
# the last bits in evaluation; whoever compares "bit for bit" has to freeze both.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
differ = {}
for name, lay in {"contiguous": lambda x: x, "transposed": lambda x: x.transpose(0, 1)}.items():
    differ[name] = 0
    for rows, tokens, width in ((2, 20, 32), (20, 2, 32), (3, 65, 48), (65, 3, 48), (4, 128, 64)):
        layer = torch.nn.Linear(width, width)
        x = lay(torch.randn(rows, tokens, width))
        found = []
        for required in (True, False):
            layer.requires_grad_(required)
            with torch.no_grad():
                found.append(layer(x))
        differ[name] += not torch.equal(*found)
print(torch.__version__, "shapes of 5 whose bits differ under no_grad:", differ)
assert differ["contiguous"] == 0, "contiguous inputs differ, too"
assert differ["transposed"] > 0, "nothing differs any more"
PY
"$room/venv/bin/python" "$room/seen.py"
