#!/usr/bin/env bash
# bitsandbytes, 4 bits with compress_statistics=True ("double quantization"): is a weight that came out of 4 bits
# the same again when it is quantized and taken out once more?
#
# Guess before running: yes. A block's largest entry stays its largest, so the scale is what it was, every entry
# lies on the grid already, and quantizing is a projection: the second time nothing moves. The 8 bits of the
# scales are a projection for the same reason.
#
# Seen (bitsandbytes 0.50.2, torch 2.13.0, on a CPU; nf4 and fp4 alike): with plain scales it is so, to the bit.
# With double quantization it is not: of an fp32 weight more than nine entries in ten move each time, for ever (by
# little: the scales are centred on their mean, which each time is another, and the 8 bits have a new grid). In bf16
# most moves are lost in rounding: 1 to 2 % of the entries move at the second and third time, and some rounds later
# it stands still.
#
# So a checkpoint written from the dequantized weights of a double-quantized base is not the model that was trained
# once it is loaded in the same 4 bits again, and two programs that pass it on through files drift apart.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 bitsandbytes==0.50.2 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import bitsandbytes
import torch
from bitsandbytes import functional

weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))


def moved(dtype, kind, double, times):
    """The share of entries that each further time through 4 bits changes."""
    value, shares = weight.to(dtype), []
    for _ in range(times):
        packed, state = functional.quantize_4bit(value, quant_type=kind, compress_statistics=double)
        again = functional.dequantize_4bit(packed, state)
        shares.append(float((again != value).float().mean()))
        value = again
    return shares[1:]


for kind in ("nf4", "fp4"):
    for dtype in (torch.float32, torch.bfloat16):
        plain, double = (moved(dtype, kind, way, 8) for way in (False, True))
        print(kind, dtype, "moved each further time:", " ".join(f"{100 * share:.1f}%" for share in double))
        assert not any(plain), "plain scales move as well"
        if dtype == torch.float32:
            assert min(double) > 0.85, "it comes to rest"
        else:
            assert 0.005 < double[0] < 0.05, "another share moves at the second time"
            assert double[-1] == 0, "it does not come to rest"
print("torch", torch.__version__, "bitsandbytes", bitsandbytes.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
