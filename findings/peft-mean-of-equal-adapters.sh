#!/usr/bin/env bash
# The mean of a LoRA adapter with itself: add_weighted_adapter with weights of a half each.
#
# Guess before running: the adapter, whatever the combination type (but for what a density prunes): "linear" is the
# linear combination of what the adapters add to the weights.
#
# Seen (peft 0.21.2): "linear", "dare_linear" and "magnitude_prune" give twice the adapter, "ties" half of it; "cat" and
# "svd" give it back. A and B are summed apart, each with the square roots of the weights, and their product holds every
# A times every B: (a + a)(b + b) / 2 = 2ab. For two unlike adapters the products of one's A with the other's B, which
# belong to no task, are as large as what was asked for.
#
# So a mean of checkpoints of one run is twice as far from the base as they are; only "cat" (or "svd") adds what the
# adapters add to the weights.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.23.0
cat > "$room/seen.py" <<'PY'
import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

WIDTH, RANK, HALVES = 64, 4, [0.5, 0.5]
SEEN = {"cat": 1.0, "svd": 1.0, "linear": 2.0, "dare_linear": 2.0, "magnitude_prune": 2.0, "ties": 0.5}
torch.manual_seed(0)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x_TI):
        return self.layer(x_TI)


def lora():
    return LoraConfig(r=RANK, target_modules=["layer"], init_lora_weights=False)


model = get_peft_model(Small(), lora(), adapter_name="one")
model.add_adapter("twin", lora())
model.add_adapter("other", lora())
layer = model.base_model.model.layer
for side in (layer.lora_A, layer.lora_B):
    side["twin"].weight.data.copy_(side["one"].weight.data)
one_OI, other_OI = layer.get_delta_weight("one"), layer.get_delta_weight("other")


def mean(first, second, kind):
    density = None if kind in ("cat", "svd", "linear") else 1.0  # nothing is pruned
    model.add_weighted_adapter([first, second], HALVES, f"{first}-{second}-{kind}", kind, density=density)
    return layer.get_delta_weight(f"{first}-{second}-{kind}")


for kind, factor in SEEN.items():
    found_OI = mean("one", "twin", kind)
    size = float((found_OI * one_OI).sum() / one_OI.square().sum())
    print(f"{kind}: the mean of an adapter with itself is {size:.3f} of it")
    assert torch.allclose(found_OI, factor * one_OI, atol=1e-5) and abs(size - factor) < 1e-4
wanted_OI = (one_OI + other_OI) / 2
extra = {kind: float((mean("one", "other", kind) - wanted_OI).norm() / wanted_OI.norm()) for kind in ("cat", "linear")}
print("two unlike adapters, what is there beside their mean, over it:", {k: round(v, 3) for k, v in extra.items()})
assert extra["cat"] < 1e-5 and 0.7 < extra["linear"] < 1.4
print("peft", peft.__version__, "torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py" 2>/dev/null
