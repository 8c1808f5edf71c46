#!/usr/bin/env bash
# Triton: is the sum over a small leading dimension of a tile free, so that it may be written as a third dimension?
#
# A tile [2, 8, 256] of products is added up first over its two halves (which each thread holds), then over the 256.
# Guess before running: written as sum(sum(x * g, axis=0), axis=1) or as sum(x0 * g0 + x1 * g1, axis=1), it compiles to
# the same: loads of 16 bytes, an addition in registers, five shuffles per row within a warp.
#
# Seen (compiled for sm_90, which needs no GPU): with triton 3.9.0 as guessed, the same counts for both. With 3.6.0 (the
# one that comes with torch 2.11) the third dimension costs: the products are laid out anew through shared memory, number
# by number (65 stores and loads where there was one), and five times as many shuffles add them up. Nothing in
# the result tells; only the PTX or a clock does.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cat > "$room/seen.py" <<'PY'
import collections
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def halves_kernel(x_ptr, g_ptr, y_ptr, stride, steps, THIRD: tl.constexpr):
    o, t = tl.arange(0, 8), tl.arange(0, 256)
    acc = tl.zeros([8], tl.float32)
    for step in range(steps):
        first = step * 512
        if THIRD:
            half = tl.arange(0, 2)[:, None, None] * 256
            places = o[None, :, None] * stride + first + half + t[None, None, :]
            x = tl.load(x_ptr + places).to(tl.float32)
            g = tl.load(g_ptr + places).to(tl.float32)
            acc += tl.sum(tl.sum(x * g, axis=0), axis=1)
        else:
            places = o[:, None] * stride + first + t[None, :]
            x0 = tl.load(x_ptr + places).to(tl.float32)
            x1 = tl.load(x_ptr + places + 256).to(tl.float32)
            g0 = tl.load(g_ptr + places).to(tl.float32)
            g1 = tl.load(g_ptr + places + 256).to(tl.float32)
            acc += tl.sum(x0 * g0 + x1 * g1, axis=1)
    tl.store(y_ptr + o, acc)


types = {"x_ptr": "*bf16", "g_ptr": "*bf16", "y_ptr": "*fp32", "stride": "i32", "steps": "i32", "THIRD": "constexpr"}
aligned = {(i,): [["tt.divisibility", 16]] for i in range(4)}
found = {}
for third in (False, True):
    source = ASTSource(fn=halves_kernel, signature=types, constexprs={(5,): third}, attrs=aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    found[third] = collections.Counter(re.findall(r"st\.shared|shfl\.sync|ld\.global\.v4", ptx))
    print(triton.__version__, "three dimensions" if third else "two dimensions  ", dict(found[third]))
same = found[True] == found[False]
assert found[False]["st.shared"] == 1 and found[False]["shfl.sync"] == 10, "two dimensions compile otherwise"
assert same == (triton.__version__ != "3.6.0"), "another version lays out anew"
assert same or found[True]["st.shared"] > 50
PY
for version in 3.6.0 3.9.0; do
    python3 -m venv "$room/$version"
    "$room/$version/bin/pip" install --quiet "triton==$version"
    TRITON_CACHE_DIR="$room/cache-$version" "$room/$version/bin/python" "$room/seen.py"
done
