#!/usr/bin/env bash
# torch on a CPU: what does writing a few entries of a large bf16 tensor in place cost?
#
# Guess before running: as much as the entries. `weight.scatter_(1, index, values)` touches what the index names, so it
# takes the same time for a large weight as for a small one, and in bf16 a little less than in fp32.
#
# Seen (torch 2.13.0): in fp32 and fp64 so it is. In bf16 and fp16 scatter_ (scatter_add_ and a plain number as
# value, too) takes time with the size of the *tensor*: 512 entries cost hundreds of times as much in a tensor of
# 4096 x 4096 as in one of 512 x 512, thousands of times what fp32 takes; by an index of one dimension or the other
# alike. gather, index_put_ and put_ of the same entries do not, in any type.
#
# So whoever trains few weights of a bf16 model, and writes them into it by scatter_ after each step, spends more on
# writing than on the rest of the optimizer; put_ with flat places is the same write, without it.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import time

import torch

torch.set_num_threads(1)
ENTRIES = 512


def microseconds(call):
    """The least of some tries, of the processor's time for 20 calls."""
    call()
    tries = []
    for _ in range(7):
        started = time.process_time()
        for _ in range(20):
            call()
        tries.append((time.process_time() - started) / 20 * 1e6)
    return min(tries)


def costs(dtype, side):
    weight = torch.zeros(side, side, dtype=dtype)
    rows = torch.arange(ENTRIES)
    columns = torch.randint(0, side, (ENTRIES,), generator=torch.Generator().manual_seed(0))
    values, places = torch.ones(ENTRIES, dtype=dtype), rows * side + columns
    found = {
        "scatter_": microseconds(lambda: weight.scatter_(1, columns.view(-1, 1), values.view(-1, 1))),
        "scatter_add_": microseconds(lambda: weight.scatter_add_(1, columns.view(-1, 1), values.view(-1, 1))),
        "put_": microseconds(lambda: weight.put_(places, values)),
        "index_put_": microseconds(lambda: weight.index_put_((rows, columns), values)),
        "gather": microseconds(lambda: weight.gather(1, columns.view(-1, 1))),
    }
    return found


for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    small, large = costs(dtype, 512), costs(dtype, 4096)
    print(dtype, {name: f"{small[name]:.0f} -> {large[name]:.0f} us" for name in small})
    for name in small:
        walks = dtype.itemsize == 2 and name.startswith("scatter")
        grown = large[name] / small[name]
        assert grown > 40 if walks else grown < 20, (dtype, name, grown)
    if dtype.itemsize == 2:
        assert large["scatter_"] > 100 * large["put_"]
print("torch", torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py"
