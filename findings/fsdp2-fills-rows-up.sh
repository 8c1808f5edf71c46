#!/usr/bin/env bash
# torch FSDP2 (fully_shard): what does a process hold and send of a tensor with fewer rows than there are processes?
#
# Guess before running: experts [8, O, I] over 32 processes leave 8 of them with one expert and 24 with nothing, so
# over all processes the tensor lies in memory once, and what is gathered is what one process would send of a whole
# one: the 24 have nothing to say. For rows that nearly divide, a row of padding here and there.
#
# Seen (torch 2.13.0, gloo): `to_local()` of the processes without a row is empty, as guessed, but the storage under
# it is as large as that of the others: all pieces are ceil(rows / N) rows. And it is sent, too: every process hands
# the same number of bytes to the all-gather. So 2 rows over 4 processes take and send twice the tensor, 5 rows over 4
# take 8/5 of it, and Mixtral's 8 experts over 32 processes four times what 8 processes take: more processes cost
# messages and save no memory. (Taking as many processes as there are experts, or a divisor, costs nothing.)
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$room/seen.py" <<'PY'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard


class Experts(torch.nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(rows, 64, 16))

    def forward(self, x):
        return x * self.weight.sum()


def work(rank, processes, rows, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    sent = []
    for name in ("all_gather_into_tensor", "all_gather_single"):  # torch has called it by two names
        if hasattr(dist, name):
            def counted(*given, _run=getattr(dist, name), **named):
                sent.append((named["input_tensor"] if "input_tensor" in named else given[1]).nbytes)
                return _run(*given, **named)
            setattr(dist, name, counted)
    model = Experts(rows)
    fully_shard(model)
    assert model(torch.ones(1)).item() == rows * 64 * 16
    model.reshard()
    local = model.weight.to_local()
    found = [None] * processes
    mine = len(local), local.untyped_storage().nbytes() // 4096, sent[0] // 4096
    dist.all_gather_object(found, mine)
    if rank == 0:
        print(f"{rows} rows over {processes} processes: (rows of its own, rows of storage, rows sent) {found}")
        piece = -(-rows // processes)
        assert sum(own for own, _, _ in found) == rows
        assert all(stored == piece and handed == piece for _, stored, handed in found), "another padding"
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    for rows in (2, 5, 8):
        mp.start_processes(work, (4, rows, f"{sys.argv[1]}/store{rows}"), nprocs=4, start_method="spawn")
    print(torch.__version__)
PY
"$room/venv/bin/python" "$room/seen.py" "$room"
