"""A training step on the CPU against its peers: SmolLM2-135M's shape, and single blocks of larger ones.

    python benchmarks/cpu.py                 # all of them, about 20 minutes
    python benchmarks/cpu.py smollm2         # one of them; RUNS has their names

One thread computes and is timed by what it takes of the processor, so that a busy machine does little harm.
Each rewrites its result file (a list of rows, as `neuroada bench --json` writes it) and its picture.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import RESULTS

from neuroada_cli.commands import bench

PEERS = ("mask", "scatter", "lora", "shira", "supertuning")
FEW = ("lora", "mask", "supertuning")
BLOCK = {"batch": 1, "sequence": 256, "compare": FEW}  # without the vocabulary: nothing dilutes what is added
WIDTH = {"model": "smollm2-135m", "layers": 10, "compare": ("lora",)}
RUNS: dict[str, dict[str, Any]] = {
    "short": WIDTH | {"batch": 1, "sequence": 32, "dtype": "fp32"},
    "short-bf16": WIDTH | {"batch": 1, "sequence": 32, "dtype": "bf16"},
    "width-bf16": WIDTH | {"batch": 4, "sequence": 128, "dtype": "bf16"},
    "block": BLOCK | {"model": "llama-7b-block", "dtype": "fp32"},
    "block-bf16": BLOCK | {"model": "llama-7b-block", "dtype": "bf16"},
    "gqa-bf16": BLOCK | {"model": "llama3-8b-block", "dtype": "bf16"},
    "smollm2": {"model": "smollm2-135m", "batch": 4, "sequence": 256, "dtype": "fp32", "compare": PEERS},
}
ROUNDS = {"short": 40, "short-bf16": 40, "width-bf16": 12}  # of short steps more are needed


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step on the CPU against its peers.")
    parser.add_argument("runs", nargs="*", metavar="|".join(RUNS))
    parser.add_argument("--rounds", type=int, help="default: 5, more of short steps")
    given = parser.parse_args()
    if unknown := set(given.runs) - set(RUNS):
        parser.error(f"{unknown.pop()} is not one of {', '.join(RUNS)}")
    torch.set_num_threads(1)
    for name in given.runs or RUNS:
        bench.run(
            **RUNS[name],
            k=(1, 20),
            rounds=given.rounds or ROUNDS.get(name, 5),
            warmup=1,
            device="cpu",
            json_out=RESULTS / f"step_cpu_{name}.json",
            plot_out=RESULTS / f"step_cpu_{name}.png",
        )


if __name__ == "__main__":
    main()
