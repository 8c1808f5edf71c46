#!/usr/bin/env bash
# torch.topk on a CPU, all values equal: which places does it give, and do those for K lie among those for K + 1?
#
# Guess before running: the first K. The documentation promises no order among equals, but an implementation that
# scans from the left and replaces only by what is larger keeps the leftmost; so K's places lie in those of K + 1.
#
# Seen (torch 2.13.0, fp32 and bf16): while 64 * K <= n they are the first K (a heap). For larger K another
# algorithm takes over and they lie anywhere, in the middle of the row as well, so that at the border the two answers
# have no place in common: of 128 equal values, K = 2 gives 0 and 1, K = 3 gives none of the two.
#
# So a choice of the K largest entries of a row, of weights in 16 bits where many are equal or of a row of zeros, is
# not the one that a loop over the row makes, and a choice for a small K is no part of that for a larger one.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import torch

for n in (64, 128, 576, 1024, 4096):
    for dtype in (torch.float32, torch.bfloat16):
        row = torch.ones(n, dtype=dtype)
        for k in range(1, 66):
            if k == n:
                continue
            places = set(row.topk(k).indices.tolist()) if k < n else set(range(n))
            assert (places == set(range(min(k, n)))) == (64 * k <= n or k >= n), (n, dtype, k)
two, three = (torch.ones(128).topk(k).indices.tolist() for k in (2, 3))
print("of 128 equal values:", two, "for K = 2 and", three, "for K = 3")
assert not set(two) & set(three)
print("torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
