#!/usr/bin/env bash
# What does not fit into torch's 8-bit floats: large numbers and infinity, cast with .to().
#
# Guess before running: as in every other cast to a narrower float, what is too large becomes infinite, and NaN in the
# formats that have no infinity (e4m3fn, and the two "fnuz").
#
# Seen (torch 2.13.0, CPU): four formats, three answers. e5m2 gives infinity, the two fnuz formats NaN, and e4m3fn, the
# one that checkpoints are stored in, its largest number, 448: for 1e6 and for infinity itself. NaN stays NaN in all.
# From fp32, bf16 and fp16 alike, in short and in long tensors.
#
# So a weight that ran over to infinity is an ordinary one after it is stored in e4m3fn: whoever looks for NaN and
# infinity has to do it before the cast. And 1e6 without a scale is no error but 448.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import math

import torch

FORMATS = {
    torch.float8_e4m3fn: 448.0,
    torch.float8_e5m2: math.inf,
    torch.float8_e4m3fnuz: math.nan,
    torch.float8_e5m2fnuz: math.nan,
}


def same(found, expected):
    return bool(torch.isnan(found).all()) if math.isnan(expected) else bool((found == expected).all())


for target, expected in FORMATS.items():
    for source in (torch.float32, torch.bfloat16, torch.float16):
        for length in (1, 7, 64, 1000):
            for value in (1e6, math.inf):  # 1e6 is infinite in fp16
                for sign in (1, -1):
                    found = torch.full((length,), sign * value).to(source).to(target).float()
                    assert same(found, sign * expected), (target, source, length, value, found)
            assert torch.full((length,), math.nan).to(source).to(target).float().isnan().all()
    print(f"{str(target):25} of 1e6: {torch.tensor(1e6).to(target).item()}, of infinity: "
          f"{torch.tensor(math.inf).to(target).item()}")
print("torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
