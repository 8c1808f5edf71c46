#!/usr/bin/env bash
# A model is loaded from a safetensors file; then the file is written to. Who notices?
#
# Guess before running: nobody. load_file and from_pretrained read the weights; from then on they are the process's own.
#
# Seen (safetensors 0.8.0, transformers 5.23.0, torch 2.13.0, Linux, CPU): the loaded model does, at once. What both
# give out lies on the file's own pages for as long as nobody writes to it: bytes changed in the file are changed in
# the model, without a word and without any change of a version counter. Pages that the process has written to
# (trained, scaled) are its own, a neighbour's few numbers on them included; so are tensors that were cast to another
# type while loading, and all of them when the file is replaced by renaming another over it. The two meet in
# fine-tuning: what is frozen is what stays on the file.
#
# So a `cp` of a newer checkpoint over the one in use, or a download that goes on in place, changes the frozen part of
# a running training. New versions have to be put in place by a rename, which leaves running processes the old one.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import os
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import load_file

folder = pathlib.Path(sys.argv[1]) / "model"
file = folder / "model.safetensors"
config = transformers.LlamaConfig(
    vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
)


def fresh():
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def write_ones(path):
    """The bytes of all tensors become those of 1.0; the header and the length stay."""
    with open(path, "r+b") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        count = (os.path.getsize(path) - start) // 4
        opened.seek(start)
        opened.write(torch.ones(count).numpy().tobytes())


def ones(tensors):
    return sum(bool((tensor == 1).all()) for tensor in tensors)


fresh()
tensors = load_file(file)
versions = [tensor._version for tensor in tensors.values()]
before = ones(tensors.values())
some = "model.layers.0.mlp.up_proj.weight"
tensors[some].mul_(2)
write_ones(file)
after = ones(tensors.values())
print(f"load_file: {before} of {len(tensors)} tensors are ones before, {after} after")
assert len(tensors) - 5 < after < len(tensors) and not (tensors[some] == 1).any()
assert sum(tensor._version != was for tensor, was in zip(tensors.values(), versions)) == 1

for what, dtype, follows in (("the same type", torch.float32, True), ("cast to bf16", torch.bfloat16, False)):
    fresh()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    total = len(list(model.parameters()))
    norms = ones(model.parameters())
    write_ones(file)
    print(f"from_pretrained, {what}: {norms} of {total} parameters are ones before, {ones(model.parameters())} after")
    assert ones(model.parameters()) == (total if follows else norms)

fresh()
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
norms = ones(model.parameters())
shutil.copy(file, folder / "new")
write_ones(folder / "new")
os.replace(folder / "new", file)
print(f"replaced by renaming: {ones(model.parameters())} after")
assert ones(model.parameters()) == norms
print("safetensors 0.8.0, transformers", transformers.__version__, "torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py" "$room" 2> "$room/errors" || { tail -5 "$room/errors"; exit 1; }
