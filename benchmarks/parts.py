"""Parts of a step: what folding the deltas in takes of all that lies above the floor; a forward pass alone.

    python benchmarks/parts.py        # rewrites benchmarks/results/parts.json

SmolLM2-135M's width, 10 of its blocks with random weights, K=20. One thread, timed by what it takes of the
processor. In every round the floor takes a step, NeuroAda takes one, and its deltas are folded in once more
by themselves; then both models pass one token of each row forward without gradients, as they do when answers
are written. A figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from common import RESULTS

from neuroada_cli import files
from neuroada_cli.benchmarking import shapes, steps
from neuroada_cli.benchmarking.measure import all_targets
from neuroada_cli.benchmarking.peers import make
from neuroada_cli.delta.targets import target_of
from neuroada_cli.machine.allocator import keeping_freed_memory
from neuroada_cli.machine.load import machine
from neuroada_cli.selection.criteria import choose

K = 20
SETTINGS = {
    "1 x 32 tokens, fp32": (1, 32, torch.float32, 40),
    "1 x 32 tokens, bf16": (1, 32, torch.bfloat16, 40),
    "4 x 128 tokens, bf16": (4, 128, torch.bfloat16, 10),
}
ROWS, FORWARDS = 4, 5  # of one token each; passes that are timed as one, since they are short


def measured(what: str, rounds: int | None) -> dict[str, Any]:
    batch, sequence, dtype, usual = SETTINGS[what]
    built = shapes.build("smollm2-135m", layers=10, dtype=dtype)
    base = built.model
    weights = {name: target_of(base, name).weight.detach() for name in all_targets(base)}
    indices = {name: choose(weight_OI, K) for name, weight_OI in weights.items()}
    floor, ours = (steps.contender(name, K, make(name), base, indices) for name in ("floor", "neuroada"))
    rows = steps.random_batch(49152, "generation", batch, sequence, "cpu")
    token_B1 = torch.arange(100, 100 + ROWS)[:, None]
    folding: list[float] = []
    passes: list[float] = []
    with keeping_freed_memory():
        for turn in range(2 + (rounds or usual)):
            order = (floor, ours) if turn % 2 else (ours, floor)
            taken = {entry.name: steps.one_step(entry, rows, "generation") for entry in order}
            folded = refold_seconds(ours)
            forward = {entry.name: forward_seconds(entry, token_B1) for entry in order}
            if turn < 2:
                continue
            floor.seconds.append(taken["floor"])
            ours.seconds.append(taken["neuroada"])
            folding.append(folded)
            passes.append(forward["neuroada"] / forward["floor"])
    above = statistics.median(b - a for a, b in zip(floor.seconds, ours.seconds, strict=True))
    quartiles = statistics.quantiles(passes, n=4)
    return {
        "what": what, "k": K, "rounds": len(folding),
        "floor_seconds": statistics.median(floor.seconds), "above_seconds": above,
        "refold_seconds": statistics.median(folding),
        "refold_share_of_above": round(statistics.median(folding) / above, 4),
        "forward_over_plain": round(statistics.median(passes), 4),
        "forward_low": round(quartiles[0], 4), "forward_high": round(quartiles[2], 4),
    }  # fmt: skip


def refold_seconds(ours: steps.Contender) -> float:
    ours.guest.enter()
    started = time.process_time()
    ours.method.after_step(ours.model)
    taken = time.process_time() - started
    ours.guest.leave()
    return taken


@torch.no_grad()
def forward_seconds(entry: steps.Contender, token_B1: torch.Tensor) -> float:
    entry.model.eval()
    entry.guest.enter()
    entry.model(input_ids=token_B1)
    started = time.process_time()
    for _ in range(FORWARDS):
        entry.model(input_ids=token_B1)
    taken = time.process_time() - started
    entry.guest.leave()
    entry.model.train()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description="Refolding and a forward pass, beside a step.")
    parser.add_argument("--rounds", type=int, help="default: 40 of short steps, 10 of longer ones")
    parser.add_argument("--no-write", action="store_true", help="leave the result file alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for what in SETTINGS:
        rows.append(measured(what, given.rounds))
        print(json.dumps(rows[-1]), flush=True)
    if not given.no_write:
        files.write_json(RESULTS / "parts.json", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
