#!/usr/bin/env bash
# A mixture whose experts take so many tokens at most (NLLB-MoE), evaluated between two training steps.
#
# Guess before running: evaluation leaves no trace but in random streams. With dropout and jitter at 0 a step after it has
# the loss and the gradients that it would have had.
#
# Seen (transformers 5.23.0): not so. In evaluation mode each router writes a bound of its own, a share of the tokens in
# that batch, into `expert_capacity`, and nothing puts the config's back. From the first evaluation on training drops the
# tokens that the last evaluated batch makes it drop: after a small batch far more of them, after a large one none.
# Saving and loading brings the config's number back, so that a resumed run trains by another bound than one that
# went on.
#
# So set the routers' expert_capacity again after every evaluation. (`neuroada` does: what it tries before training and
# each validation leave the bound as it was.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import tempfile

import torch
import transformers
from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration

transformers.logging.set_verbosity_error()
SIZES = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_sparse_step": 2, "decoder_sparse_step": 2}
QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "router_jitter_noise": 0.0}
torch.manual_seed(0)
config = NllbMoeConfig(
    vocab_size=64, num_experts=4, expert_capacity=64, moe_token_dropout=0.0, encoder_layerdrop=0.0,
    decoder_layerdrop=0.0, init_std=0.5, **SIZES, **HEADS, **QUIET,
)
model = NllbMoeForConditionalGeneration(config).train()
rows, few = torch.randint(5, 64, (4, 24)), torch.randint(5, 64, (1, 6))


def capacities(model):
    return {module.expert_capacity for module in model.modules() if hasattr(module, "expert_capacity")}


def loss():
    return model(input_ids=rows, labels=rows).loss.item()


before, bound = loss(), capacities(model)
assert loss() == before and bound == {64}
model.eval()
with torch.no_grad():
    model(input_ids=few, labels=few)
model.train()
after = loss()
print(f"expert_capacity {bound} before an evaluation of 6 tokens, {capacities(model)} after it")
print(f"loss of the same step before {before:.4f}, after {after:.4f}")
assert capacities(model) == {few.numel()} and abs(after - before) > 0.01
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    again = NllbMoeForConditionalGeneration.from_pretrained(folder)
assert capacities(again) == bound
print("transformers", transformers.__version__, "torch", torch.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
