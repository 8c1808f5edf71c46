#!/usr/bin/env bash
# transformers 5: config.rope_theta = 500 on the config of a LLaMA that is there already.
#
# Guess before running: the model made of that config rotates with 500, as under version 4; or an error.
#
# Seen (transformers 5.23.0): neither. What counts is config.rope_parameters["rope_theta"], and the attribute stands
# beside it, read by nobody: the logits are the same bits as without. save_pretrained writes both, rope_theta 500 at the
# top and 10000 within rope_parameters; from_pretrained keeps the 10000 and drops the 500 without a word, while a
# program that knows the old key alone takes the 500. config.update and AutoConfig.from_pretrained(folder,
# rope_theta=500) do as little. In the constructor, and alone in a file of version 4, rope_theta counts. rope_scaling,
# the other old name, is the same thing as rope_parameters: set afterwards it takes its place, with a rope_theta of
# None, and the model cannot be made.
#
# So what is to be changed in a loaded config is rope_parameters. (`neuroada` changes no base's config; the one that it
# makes for a GGUF file has rope_parameters.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import json
import pathlib
import sys
import warnings

import torch
import transformers
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.2}
USUAL, NEW = 10000.0, 500.0
folder = pathlib.Path(sys.argv[1])


def logits(config):
    torch.manual_seed(0)
    with torch.no_grad():
        return LlamaForCausalLM(config).eval()(torch.arange(5, 25)[None]).logits


usual, wanted = logits(LlamaConfig(**SIZES)), logits(LlamaConfig(**SIZES, rope_theta=NEW))
off = ((wanted - usual).norm() / usual.norm()).item()
print(f"rope_theta in the constructor counts: it moves the logits by {off:.2f} of their size")
assert off > 0.05

config = LlamaConfig(**SIZES)
config.rope_theta = NEW
print("set afterwards:", config.rope_theta, config.rope_parameters, torch.equal(logits(config), usual))
assert config.rope_parameters["rope_theta"] == USUAL and torch.equal(logits(config), usual)

config.save_pretrained(folder)
stored = json.loads((folder / "config.json").read_text())
print("saved:", {key: value for key, value in stored.items() if "rope" in key})
assert stored["rope_theta"] == NEW and stored["rope_parameters"]["rope_theta"] == USUAL
again = AutoConfig.from_pretrained(folder)
print("loaded:", again.rope_parameters, "rope_theta" in vars(again))
assert "rope_theta" not in vars(again) and torch.equal(logits(again), usual)

LlamaConfig(**SIZES).save_pretrained(folder)
asked = AutoConfig.from_pretrained(folder, rope_theta=NEW)
updated = LlamaConfig(**SIZES)
updated.update({"rope_theta": NEW})
print("asked of from_pretrained:", asked.rope_parameters, "update:", updated.rope_parameters)
assert torch.equal(logits(asked), usual) and torch.equal(logits(updated), usual)

right = LlamaConfig(**SIZES)
right.rope_parameters["rope_theta"] = NEW
assert torch.equal(logits(right), wanted)
stored = json.loads((folder / "config.json").read_text())
del stored["rope_parameters"]
(folder / "config.json").write_text(json.dumps(stored | {"rope_theta": NEW}))
assert torch.equal(logits(AutoConfig.from_pretrained(folder)), wanted)
print("in rope_parameters, and alone in a file, it counts")

scaled = LlamaConfig(**SIZES)
scaled.rope_scaling = {"rope_type": "linear", "factor": 4.0}
print("rope_scaling set afterwards:", scaled.rope_parameters)
assert scaled.rope_parameters["factor"] == 4.0 and scaled.rope_parameters["rope_theta"] is None
try:
    logits(scaled)
except Exception as error:
    print(type(error).__name__, error)
else:
    raise AssertionError
print("transformers", transformers.__version__, "torch", torch.__version__)
PY
HF_HUB_OFFLINE=1 "$room/venv/bin/python" "$room/seen.py" "$room/config" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
