#!/usr/bin/env bash
# A LLaMA whose config.json transformers 5 has saved, with a rotary base of 500,000, read by mlx-lm.
#
# Guess before running: mlx-lm rotates with 500,000, or says that it does not know the config.
#
# Seen (mlx-lm 0.32.2, transformers 5.23.0): neither. transformers 5 writes the base into rope_parameters alone; mlx-lm's
# Llama, Mistral and Qwen2 read the older key rope_theta, find none and take their own default, 10,000 for Llama: it
# converts and loads without a word, and answers as another model. A linear scaling within rope_parameters is passed over
# likewise. Qwen3 reads both. A config with the older keys, as most older models on the hub have, is read rightly.
#
# So whoever saves a fine-tuned model by transformers 5 writes rope_theta (and rope_scaling) beside rope_parameters before
# mlx-lm converts it. (`neuroada export --to mlx` hands them over, and compares what came out with the model.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet mlx-lm==0.32.2 mlx==0.32.4 'mlx-cpu==0.32.4; sys_platform == "linux"' \
    transformers==5.23.0
cat > "$room/seen.py" <<'PY'
import importlib.metadata
import json
import pathlib
import sys

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.utils import load_model
from transformers import LlamaConfig

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 64, "num_key_value_heads": 4, "head_dim": 8}
BASE = 5e5
folder = pathlib.Path(sys.argv[1])
folder.mkdir()


def logits(config):
    (folder / "config.json").write_text(json.dumps(config))
    return load_model(folder)[0](mx.arange(5, 45)[None])


def size(array):
    return float(mx.sqrt((array * array).sum()))


def saved(**rotary):
    LlamaConfig(**SIZES, rope_parameters={"rope_theta": BASE, **rotary}).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


new = saved(rope_type="default")
print("saved by transformers:", {key: value for key, value in new.items() if "rope" in key})
assert "rope_theta" not in new and new["rope_parameters"]["rope_theta"] == BASE
print("mlx-lm reads:", llama.ModelArgs.from_dict(new).rope_theta)
assert llama.ModelArgs.from_dict(new).rope_theta == 10000

mx.random.seed(0)
weights = {name: 0.5 * mx.random.normal(held.shape) for name, held in
           tree_flatten(llama.Model(llama.ModelArgs.from_dict(new)).parameters())}
mx.save_safetensors(str(folder / "model.safetensors"), weights)
found, usual = logits(new), logits(new | {"rope_theta": 10000.0})
wanted = logits(new | {"rope_theta": BASE})
off = size(found - wanted) / size(wanted)
print(f"its logits are those of a base of 10,000, and off by {off:.2f} of their size")
assert bool(mx.array_equal(found, usual)) and off > 0.05

scaled = saved(rope_type="linear", factor=4.0) | {"rope_theta": BASE}
without = logits(scaled)
scaling = logits(scaled | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}})
print(f"a scaling within rope_parameters: off by {size(without - scaling) / size(scaling):.2f}")
assert bool(mx.array_equal(without, wanted)) and size(without - scaling) / size(scaling) > 0.05
print("mlx-lm", importlib.metadata.version("mlx-lm"))
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" "$room/model" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
