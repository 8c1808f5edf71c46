"""The sampled gradient alone: every back-end against the layer's own forward + dx, shape by shape.

    python benchmarks/op.py                          # table only
    python benchmarks/op.py --write                  # also the table that chooses back-ends and the result
    python benchmarks/op.py --shapes 768,576,1536 --k 1,20 --dtype bf16

Everything of a shape is interleaved: in each round the floor (y = x W^T and dx = g W) and then every back-end
run once, in rotating order; a figure is the median over the rounds of back-end / floor in the same round.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import RESULTS

from neuroada_cli import files
from neuroada_cli.delta.sampled_grad import BACKENDS, TABLE, usable_for
from neuroada_cli.machine.load import machine
from neuroada_cli.selection.criteria import choose

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# (T, I, O): SmolLM2-135M's projections at 4 x 256 tokens, LLaMA-7B's at 512
SHAPES = ((1024, 576, 576), (1024, 576, 1536), (1024, 1536, 576), (512, 4096, 4096), (512, 4096, 11008))
HOPELESS = 1.5  # a back-end this many times the floor in its trial run is not worth more rounds


def measure(
    shape: tuple[int, int, int], k: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> dict[str, Any]:
    """One row: the ratio to forward + dx of the dense oracle and of every back-end that can run here."""
    tokens, inputs, outputs = shape
    generator = torch.Generator(device=device).manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=dtype, generator=generator)

    x_TI, grad_TO, weight_OI = random(tokens, inputs), random(tokens, outputs), random(outputs, inputs)
    # real models pick outlier inputs again and again, which is what makes a gather cheap or dear
    weight_OI *= 1 + torch.randn(inputs, device=device, generator=generator).abs().to(dtype)
    index_OK = choose(weight_OI, k)

    def floor() -> None:
        torch.nn.functional.linear(x_TI, weight_OI)
        grad_TO @ weight_OI

    runs: dict[str, Callable[[], Any]] = {"floor": floor}
    hopeless: dict[str, float] = {}
    floor_seconds = min(seconds(floor, device) for _ in range(3))
    for name in ("dense_oracle", *usable_for(inputs, k, dtype, device)):
        run = _bound(name, grad_TO, x_TI, index_OK)
        run()
        trial = seconds(run, device) / floor_seconds
        if trial > HOPELESS:
            hopeless[name] = trial
        else:
            runs[name] = run
    ratios, floor_seconds = interleave(runs, rounds, device)
    ratios |= hopeless
    fastest = min((n for n in ratios if n != "dense_oracle"), key=lambda name: ratios[name])
    return {
        "kind": f"{device.type} {str(dtype).removeprefix('torch.')}",
        "tokens": tokens, "inputs": inputs, "outputs": outputs, "k": k,
        "fastest": fastest, "floor_seconds": floor_seconds,
        "ratios": {name: round(ratio, 4) for name, ratio in sorted(ratios.items())},
    }  # fmt: skip


def _bound(name: str, grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor) -> Callable[[], Tensor]:
    from neuroada_cli.delta.triton_grad import last_transpose

    def run() -> Tensor:
        if name == "triton":
            last_transpose.clear()  # the transpose is part of the price, though siblings share it in a model
        return BACKENDS[name](grad_TO, x_TI, index_OK)

    return run


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def interleave(
    runs: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> tuple[dict[str, float], float]:
    """(name -> median ratio to "floor", the floor's median seconds)."""
    names = list(runs)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(seconds(runs[name], device))
    ratios = {
        name: statistics.median(t / f for t, f in zip(taken[name], taken["floor"], strict=True))
        for name in names
        if name != "floor"
    }
    return ratios, statistics.median(taken["floor"])


def table(
    shapes: Sequence[tuple[int, int, int]], ks: Sequence[int], dtypes: Sequence[str],
    device: torch.device, rounds: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    for dtype in dtypes:
        for shape in shapes:
            for k in ks:
                if k <= shape[1]:
                    yield measure(shape, k, DTYPES[dtype], device, rounds)


def write_table(rows: Sequence[dict[str, Any]], machine: str) -> None:
    """Replace the rows of the kinds measured now (device and dtype); those of other machines stay."""
    kinds = {row["kind"] for row in rows}
    old = json.loads(TABLE.read_text(encoding="utf-8"))["rows"] if TABLE.is_file() else []
    keys = ("kind", "tokens", "inputs", "outputs", "k", "fastest")
    kept = [row for row in old if row["kind"] not in kinds]
    chosen = [{key: row[key] for key in keys} for row in rows]
    files.write_json(TABLE, {"made_by": "make bench-op", "machine": machine, "rows": kept + chosen})


def main() -> None:
    parser = argparse.ArgumentParser(description="The sampled gradient against its layer's forward + dx.")
    parser.add_argument("--shapes", help="T,I,O triples separated by blanks", nargs="*")
    parser.add_argument("--k", default="1,4,20,64")
    parser.add_argument("--dtype", default="fp32,bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    shapes = [tuple(map(int, s.split(","))) for s in given.shapes] if given.shapes else SHAPES
    ks = [int(k) for k in given.k.split(",")]
    device = torch.device(given.device)
    rows = []
    for row in table(shapes, ks, given.dtype.split(","), device, given.rounds):
        rows.append(row)
        ratios = "  ".join(f"{name} {ratio:.4f}" for name, ratio in row["ratios"].items())
        where = f"{row['kind']:14} T={row['tokens']:<5} I={row['inputs']:<5} O={row['outputs']:<6}"
        print(f"{where} K={row['k']:<3} {row['floor_seconds'] * 1e3:8.2f} ms   {ratios}", flush=True)
    if given.write:
        write_table(rows, machine()["cpu" if device.type == "cpu" else "gpu"])
        files.write_json(RESULTS / f"op_{device.type}.json", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
