#!/usr/bin/env bash
# A mixture of experts loaded in 4 bits: what becomes of the experts, which are nearly all of it.
#
# Guess before running: BitsAndBytesConfig(load_in_4bit=True) packs them like every other linear layer, as it did where
# each expert was a module with three linear layers of its own.
#
# Seen (transformers 5.23.0, bitsandbytes 0.50.2): it packs attention and leaves the experts as they are, without a
# word. A layer's experts are one parameter of three dimensions there, and only modules that are linear layers are
# replaced. Of a Mixtral or a Qwen3 mixture whose experts are nine tenths of the parameters the "4-bit" model takes
# 0.94 of the memory of the bf16 one; the same in 8 bits.
#
# So a mixture of 30 billion parameters that was to fit into a card of 24 GB by 4 bits takes 60.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 bitsandbytes==0.50.2 \
    accelerate==1.15.0
cat > "$room/seen.py" <<'PY'
import sys

import bitsandbytes
import torch
import transformers
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

transformers.logging.set_verbosity_error()
SIZES = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 128,
}
MODELS = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=256, num_local_experts=8)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, moe_intermediate_size=256, num_experts=8, num_experts_per_tok=2, head_dim=64)
    ),
}
PACKED = {
    Linear4bit: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    Linear8bitLt: BitsAndBytesConfig(load_in_8bit=True),
}
for name, make in MODELS.items():
    folder = f"{sys.argv[1]}/{name}"
    plain = make().bfloat16()
    whole = plain.get_memory_footprint()
    plain.save_pretrained(folder)
    for kind, how in PACKED.items():
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=how, dtype=torch.bfloat16, device_map="cpu"
        )
        packed = [n for n, module in model.named_modules() if isinstance(module, kind)]
        experts = {n: p for n, p in model.named_parameters() if "experts" in n}
        ratio = model.get_memory_footprint() / whole
        types = sorted({str(p.dtype) for p in experts.values()})
        print(f"{name}, {kind.__name__}: {len(packed)} layers packed, experts {types}, {ratio:.2f} of the bf16 memory")
        assert packed and all("self_attn" in n for n in packed)
        assert {p.dtype for p in experts.values()} == {torch.bfloat16} and all(p.ndim == 3 for p in experts.values())
        assert ratio > 0.9
print("transformers", transformers.__version__, "bitsandbytes", bitsandbytes.__version__)
PY
"$room/venv/bin/python" "$room/seen.py" "$room" 2>/dev/null
