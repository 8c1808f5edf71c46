#!/usr/bin/env bash
# transformers: which type does a checkpoint of two types get by dtype="auto", where its config.json names none?
#
# Guess before running: the one that most of the weights have; or that of the first tensor in the file, which is an
# fp32 one wherever there is any, since safetensors writes wider types first. A model never loses digits by "auto".
#
# Seen (transformers 5.23.0, safetensors 0.8.0): one tensor decides, the first by *name* in the file, or in the first
# shard alone, whatever the others are, and all of the model is cast to it without a word. For a Llama that is lm_head
# where it has one of its own. So a head kept in fp32 makes a bf16 model fp32, twice its memory; and a head in bf16
# rounds eleven of eleven fp32 tensors. In shards the order of the files decides: the same weights are fp32 or bf16 by
# which of them lie in the first one. Leaving dtype out is the same as "auto".
#
# So a merged or edited checkpoint has to say dtype in config.json whenever its tensors are not all of one type.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import contextlib
import io
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

HEAD, EMBED, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=False,
)
torch.manual_seed(0)
weights = LlamaForCausalLM(config).state_dict()


def loaded(number, wide, first=None):
    """The types of the model that is loaded. wide: tensors in fp32, the others bf16; first: alone in shard 1."""
    folder = Path(sys.argv[1]) / str(number)
    folder.mkdir()
    said = config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    said.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(said))
    stored = {name: (w if name in wide else w.bfloat16()).contiguous() for name, w in weights.items()}
    if first is None:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        places = {name: f"model-0000{1 if name == first else 2}-of-00002.safetensors" for name in stored}
        for file in set(places.values()):
            part = {name: stored[name] for name in stored if places[name] == file}
            save_file(part, folder / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with contextlib.redirect_stderr(io.StringIO()) as heard:
        models = [AutoModelForCausalLM.from_pretrained(folder, **how) for how in ({"dtype": "auto"}, {})]
    assert "float" not in heard.getvalue(), "it says something about types"
    types = [{str(p.dtype).removeprefix("torch.") for p in model.parameters()} for model in models]
    assert types[0] == types[1]
    (only,) = types[0]
    return only


others = [name for name in weights if name != HEAD]
seen = [
    ("fp32: the head alone, in one file", loaded(1, [HEAD]), "float32"),
    ("fp32: the embedding alone, in one file", loaded(2, [EMBED]), "bfloat16"),
    ("fp32: all but the head, in one file", loaded(3, others), "bfloat16"),
    ("fp32: the embedding alone, which is the first shard", loaded(4, [EMBED], EMBED), "float32"),
    ("fp32: the head alone, in the second shard", loaded(5, [HEAD], EMBED), "bfloat16"),
    ("fp32: all but a norm, which is the first shard", loaded(6, [n for n in weights if n != NORM], NORM), "bfloat16"),
]
for what, got, expected in seen:
    print(f"{what}: loaded as {got}")
    assert got == expected, what
print("transformers", transformers.__version__)
PY
"$room/venv/bin/python" "$room/seen.py" "$room"
