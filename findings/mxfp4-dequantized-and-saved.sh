#!/usr/bin/env bash
# transformers: is a gpt-oss that was loaded with Mxfp4Config(dequantize=True) and saved the same model when it is
# loaded again?
#
# Guess before running: yes. `dequantize=True` is the documented way to train these models, save_pretrained drops
# quantization_config from config.json, so the folder holds plain bf16 experts under the names that gpt-oss has
# (`mlp.experts.gate_up_proj`, `down_proj`), and from_pretrained gives the same numbers.
#
# Seen (transformers 5.23.0, torch 2.13.0): quantization_config is gone and the numbers are bf16, but the file calls
# them `gate_up_proj_blocks` and `down_proj_blocks`, without any `_scales`. from_pretrained of that folder takes none
# of them, lists the experts as missing (a warning) and fills them at random: the logits are another model's.
#
# So a merged or fine-tuned gpt-oss that was saved in this way has lost its experts; names have to be mended first.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 accelerate==1.15.0
cat > "$room/seen.py" <<'PY'
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, Mxfp4Config

transformers.logging.set_verbosity_error()
packed, dense = (str(Path(sys.argv[1]) / name) for name in ("packed", "dense"))
torch.manual_seed(0)
config = GptOssConfig(
    vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=2, head_dim=16, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
)
GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(packed)
# the experts as openai/gpt-oss-20b stores them
held = load_file(f"{packed}/model.safetensors")
for name in [name for name in held if name.endswith("_proj") and held[name].ndim == 3]:
    experts, inputs, outputs = held.pop(name).shape
    held[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
    held[f"{name}_scales"] = torch.randint(120, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
save_file(held, f"{packed}/model.safetensors", metadata={"format": "pt"})
file = Path(packed) / "config.json"
settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn",
            "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}
file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))

model = AutoModelForCausalLM.from_pretrained(
    packed, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16
)
model.save_pretrained(dense)
names = [name for name in load_file(f"{dense}/model.safetensors") if "experts" in name and "bias" not in name]
again, told = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16, output_loading_info=True)
tokens = torch.arange(5, 25)[None]
with torch.no_grad():
    off = float((model.eval()(tokens).logits - again.eval()(tokens).logits).abs().max())
print(transformers.__version__, sorted(names)[:2], "missing:", len(told["missing_keys"]), "logits off by", off)
assert "quantization_config" not in json.loads((Path(dense) / "config.json").read_text())
assert len(names) == 4, "another number of tensors"
assert all(name.endswith("_blocks") for name in names), "the names are the model's now"
assert len(told["missing_keys"]) == 4, "the experts are found now"
assert off > 0.01, "the same model comes back now"
PY
"$room/venv/bin/python" "$room/seen.py" "$room"
