#!/usr/bin/env bash
# Triton's interpreter (TRITON_INTERPRET=1): does a kernel's cast from fp32 to bf16 round as it does on a GPU?
#
# Guess before running: yes. The interpreter exists to show what a kernel computes; `x.to(tl.bfloat16)` compiles to
# `cvt.rn.bf16.f32`, round to nearest even, and PyTorch's own cast on a CPU rounds so, too.
#
# Seen (triton 3.9.0, torch 2.13.0): to fp16 it rounds to nearest; to bf16 it cuts the lower 16 bits off, towards
# zero. About half of all numbers come out one bf16 step too small. The same kernel compiled for sm_90 (no GPU is
# needed for that) has `cvt.rn.bf16` and nothing else. So a kernel that folds or stores in bf16 is biased in the
# interpreter and right on a GPU: compare there with a tolerance of one step, and look at the PTX for the rounding.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 triton==3.9.0
cat > "$room/seen.py" <<'PY'
import os
import re
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def cast_kernel(x_ptr, y_ptr, TYPE: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i).to(TYPE))


if sys.argv[1] == "interpreted":
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    for dtype, kind in ((torch.float16, tl.float16), (torch.bfloat16, tl.bfloat16)):
        y = torch.empty(1024, dtype=dtype)
        cast_kernel[(1,)](x, y, kind, 1024)
        print(f"{dtype}: {int((y != x.to(dtype)).sum())} of 1024 differ from round to nearest")
        cut = (x.view(torch.int32) & -65536).view(torch.float32)
        assert torch.equal(y, x.to(dtype)) if dtype == torch.float16 else torch.equal(y.float(), cut), "rounds"
else:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {"x_ptr": "*fp32", "y_ptr": "*bf16", "TYPE": "constexpr", "N": "constexpr"}
    source = ASTSource(fn=cast_kernel, signature=signature, constexprs={(2,): tl.bfloat16, (3,): 1024})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    found = sorted(set(re.findall(r"cvt\.\S*bf16\S*", ptx)))
    print("compiled:", *found)
    assert found and all(name.startswith("cvt.rn.bf16") for name in found), "another rounding"
PY
TRITON_INTERPRET=1 "$room/venv/bin/python" "$room/seen.py" interpreted
TRITON_CACHE_DIR="$room/cache" "$room/venv/bin/python" "$room/seen.py" compiled
