#!/usr/bin/env bash
# PEFT's adapters on torch's own nn.TransformerEncoderLayer: what does a trained one do in evaluation?
#
# Guess before running: the same as in training, without dropout. Layers are replaced by wrappers, and a wrapper's
# forward does not ask for the mode.
#
# Seen (peft 0.21.2, torch 2.13.0): nothing at all. In evaluation the layer takes torch's fused path, which reads
# linear1.weight, linear2.weight and the attention's weights off the modules and calls none of them; a wrapper's
# `weight` is the base's. So outputs are the base model's to the last bit, with gradients switched off or on, whether
# the adapter is on linear1 and linear2 or on the attention as a whole. In training mode, and after merging, it is
# there. On the attention's out_proj alone it is in neither: nn.MultiheadAttention never calls that module, so it gets
# no gradient, and a training with nothing else ends in an error.
#
# So a fine-tuning learns, its validation does not move, and the merged model is another than the one that was
# evaluated. What helps: merging before evaluation, or torch.backends.mha.set_fastpath_enabled(False).
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 peft==0.21.2 transformers==5.23.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import warnings

import peft
import torch
from torch import nn

warnings.simplefilter("ignore")


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.block(x))


def outputs(targets):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    config = peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False)
    model = peft.get_peft_model(Encoder(), config)
    found = {"training": model.train()(x).detach()}
    model.eval()
    with torch.no_grad():
        found["evaluation"] = model(x)
        with model.disable_adapter():
            found["base"] = model(x)
        torch.backends.mha.set_fastpath_enabled(False)
        found["evaluation, not fused"] = model(x)
        torch.backends.mha.set_fastpath_enabled(True)
    found["evaluation, with gradients"] = model(x).detach()
    with torch.no_grad():
        found["merged"] = model.merge_and_unload().eval()(x)
    return {name: (y - found["base"]).abs().max().item() for name, y in found.items()}


for targets in (["linear1", "linear2"], ["self_attn"]):
    off = outputs(targets)
    print(targets, {name: round(value, 4) for name, value in off.items()})
    assert off["evaluation"] == off["evaluation, with gradients"] == 0.0
    for there in ("training", "evaluation, not fused", "merged"):
        assert off[there] > 0.1

model = peft.get_peft_model(Encoder(), peft.LoraConfig(target_modules=["out_proj"], r=2))
assert not model.train()(torch.randn(2, 5, 16)).requires_grad
print("out_proj alone: nothing to train")
print("peft", peft.__version__, "torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
