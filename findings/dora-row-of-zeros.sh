#!/usr/bin/env bash
# DoRA on a layer of which one neuron's weights are all zero (a pruned one, a row that pads a vocabulary).
#
# Guess before running: the neuron's output stays 0 until it learns. A new DoRA adapter is the base model.
#
# Seen (peft 0.21.2, torch 2.13.0): the neuron's output is NaN from the first forward pass on, before any training. Its
# magnitude, 0, is divided by the norm of its row, 0, without a safeguard. All that follows is NaN, the loss and every
# gradient; merging writes NaN into the weight, which `safe_merge=True` finds and the plain merge does not; and
# unmerging does not bring the base back: that row is NaN in it from then on. LoRA on the same layer is fine, and so is
# DoRA with the row at 1e-6; at 1e-30 the norm is 0, too, and nothing is finite.
#
# So a base with a single dead neuron in a target cannot be trained with DoRA, and what it says is "loss is NaN".
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 peft==0.21.2 transformers==5.23.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import copy

import peft
import torch
from torch import nn

DEAD = 3
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
x = torch.randn(4, 8)


def adapted(value, **settings):
    model = copy.deepcopy(base)
    with torch.no_grad():
        model[0].weight[DEAD] = value
    plain = model(x).detach()
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2, **settings)), plain


lora, plain = adapted(0.0)
assert torch.equal(lora(x), plain)
small, plain = adapted(1e-6, use_dora=True)
assert torch.allclose(small(x), plain, atol=1e-5)
tiny, _ = adapted(1e-30, use_dora=True)
print("DoRA, a row at 1e-30:", tiny(x)[0].tolist())
assert not tiny(x).isfinite().any()

dora, plain = adapted(0.0, use_dora=True)
assert plain.isfinite().all()
y = dora(x)
y.sum().backward()
gradients = [p.grad for p in dora.parameters() if p.grad is not None]
print("DoRA, before training:", y.isnan().sum().item(), "of", y.numel(), "outputs are NaN")
assert y.isnan().all() and all(grad.isnan().any() for grad in gradients)

weight = dora.base_model.model[0].base_layer.weight
assert weight.isfinite().all()
try:
    copy.deepcopy(dora).merge_and_unload(safe_merge=True)
    raise SystemExit("a safe merge no longer objects")
except ValueError as error:
    print("safe_merge:", error)
dora.merge_adapter()
assert weight[DEAD].isnan().all() and weight[:DEAD].isfinite().all()
dora.unmerge_adapter()
print("the base's row after merging and unmerging:", weight[DEAD].tolist()[:2], "...")
assert weight[DEAD].isnan().all()
print("peft", peft.__version__, "torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
