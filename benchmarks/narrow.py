"""16-bit models on this processor: a step and a decoded token as torch computes them, and by way of fp32.

    python benchmarks/narrow.py        # rewrites benchmarks/results/narrow.json

SmolLM2-135M's width, 2 of its blocks with random weights, K=20, one thread, timed by what it takes of the
processor. In every round the model in fp32 takes a step, then the one in 16 bits with torch's own products,
then that one with the products of `machine/narrow_products.py`; after each, one token of 4 rows passes
forward without gradients. A figure is the median of the round's ratios to fp32. A type that torch has quick
products for on this processor is only compared with fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import nullcontext
from typing import Any

import torch
from common import RESULTS
from parts import ROWS, forward_seconds

from neuroada_cli import files
from neuroada_cli.benchmarking import shapes, steps
from neuroada_cli.benchmarking.measure import all_targets
from neuroada_cli.benchmarking.peers import make
from neuroada_cli.delta.targets import target_of
from neuroada_cli.machine import narrow_products
from neuroada_cli.machine.allocator import keeping_freed_memory
from neuroada_cli.machine.load import machine
from neuroada_cli.selection.criteria import choose

K, BATCH, TOKENS, BLOCKS = 20, 1, 128, 2
NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def contender(dtype: torch.dtype) -> steps.Contender:
    built = shapes.build("smollm2-135m", layers=BLOCKS, dtype=dtype)
    weights = {name: target_of(built.model, name).weight.detach() for name in all_targets(built.model)}
    indices = {name: choose(weight_OI, K) for name, weight_OI in weights.items()}
    return steps.contender("neuroada", K, make("neuroada"), built.model, indices)


def measured(name: str, rounds: int) -> dict[str, Any]:
    slow = NARROW[name] in narrow_products.slow_here()
    wide, narrow = contender(torch.float32), contender(NARROW[name])
    ways = {"fp32": (wide, nullcontext), "as torch computes it": (narrow, narrow_products.as_torch_does)}
    if slow:
        ways["by way of fp32"] = (narrow, nullcontext)
    batch = steps.random_batch(49152, "generation", BATCH, TOKENS, "cpu")
    token_B1 = torch.arange(100, 100 + ROWS)[:, None]
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with keeping_freed_memory():
        for turn in range(1 + rounds):  # the first one warms up
            for way, (model, within) in ways.items():
                with within():
                    both = steps.one_step(model, batch, "generation"), forward_seconds(model, token_B1)
                if turn:
                    taken[way].append(both)
    row: dict[str, Any] = {"dtype": name, "slow": slow, "rounds": rounds, "batch": BATCH, "tokens": TOKENS}
    for way, times in taken.items():
        pairs = zip(times, taken["fp32"], strict=True)
        ratios = [(own[0] / of[0], own[1] / of[1]) for own, of in pairs]
        row[way] = {
            "step_seconds": round(statistics.median(own[0] for own in times), 4),
            "step_over_fp32": round(statistics.median(ratio[0] for ratio in ratios), 3),
            "forward_over_fp32": round(statistics.median(ratio[1] for ratio in ratios), 3),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="16-bit models beside fp32 on this processor.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-write", action="store_true", help="leave the result file alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in NARROW:
        rows.append(measured(name, given.rounds))
        print(json.dumps(rows[-1], indent=1))
    if not given.no_write:
        files.write_json(RESULTS / "narrow.json", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
