#!/usr/bin/env bash
# The order in which a safetensors file holds its tensors.
#
# Guess before running: that of the dict it was given (a model's own order, layer by layer), or by name.
#
# Seen (safetensors 0.8.0): by data type first, widest types first, then by name as text, so that layer 10 stands before
# layer 9 and an int64 buffer before everything. keys() of an open file is sorted by name, another order again; the
# file's own is offset_keys().
#
# So whoever reads a checkpoint tensor by tensor along the model's layers, or along keys(), jumps through the file: on
# a cold disk the order to ask for is offset_keys().
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cat > "$room/seen.py" <<'PY'
import json
import struct
import sys

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import save_file

GIVEN = {
    "layers.9.weight": torch.float32,
    "norm": torch.float16,
    "layers.10.weight": torch.float32,
    "head": torch.bfloat16,
    "packed": torch.uint8,
    "positions": torch.int64,
    "scale": torch.float8_e4m3fn,
}
path = sys.argv[1]
save_file({name: torch.zeros(4, dtype=dtype) for name, dtype in GIVEN.items()}, path)
with open(path, "rb") as file:
    header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
written = sorted((n for n in header if n != "__metadata__"), key=lambda name: header[name]["data_offsets"])
with safe_open(path, "pt") as opened:
    keys, along = list(opened.keys()), list(opened.offset_keys())
print("given:  ", list(GIVEN))
print("written:", written)
print("keys(): ", keys)
assert written == ["positions", "layers.10.weight", "layers.9.weight", "head", "norm", "scale", "packed"]
assert keys == sorted(GIVEN) and along == written
print("safetensors", safetensors.__version__)
PY
"$room/venv/bin/python" "$room/seen.py" "$room/some.safetensors"
