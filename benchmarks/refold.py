"""Ways to rewrite K entries per row of a weight in place, which happens once per layer and optimizer step.

    python benchmarks/refold.py        # rewrites benchmarks/results/refold.json

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import RESULTS

from neuroada_cli import files
from neuroada_cli.delta import native
from neuroada_cli.delta.layout import Layout
from neuroada_cli.machine.load import machine

SHAPES = ((576, 1536), (4096, 4096), (11008, 4096))
ROUNDS = 5
SHORTEST = 0.01  # seconds that are timed at once


def seconds(way: Callable[[], object]) -> float:
    """Of the processor, by one thread; of as many calls as can be timed."""
    way()
    calls, started = 0, time.process_time()
    while (taken := time.process_time() - started) < SHORTEST:
        way()
        calls += 1
    return taken / calls


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for outputs, inputs in SHAPES:
            for k in (1, 20):
                weight_OI = torch.randn(outputs, inputs).to(dtype)
                index_OK = torch.randint(inputs, (outputs, k))
                values_OK = torch.randn(outputs, k).to(dtype)
                row_O1 = torch.arange(outputs)[:, None]
                flat_OK = row_O1 * inputs + index_OK
                ways = {
                    "scatter_": lambda w=weight_OI, i=index_OK, v=values_OK: w.scatter_(1, i, v),
                    "index_put_": lambda w=weight_OI, r=row_O1, i=index_OK, v=values_OK: w.index_put_(
                        (r, i), v
                    ),
                    "put_": lambda w=weight_OI, f=flat_OK, v=values_OK: w.put_(f, v),
                }
                job = (weight_OI, index_OK.int(), values_OK, None, Layout(outputs, inputs))
                if native.fold_available(*job[:4]):
                    ways["kernel"] = lambda j=job: native.fold([j])
                times = {
                    name: statistics.median(seconds(way) for _ in range(ROUNDS)) for name, way in ways.items()
                }
                milliseconds = {name: round(1000 * value, 4) for name, value in times.items()}
                row = {
                    "dtype": str(dtype).removeprefix("torch."),
                    "outputs": outputs,
                    "inputs": inputs,
                    "k": k,
                }
                rows.append(row | {"milliseconds": milliseconds})
                print(rows[-1])
    files.write_json(RESULTS / "refold.json", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
