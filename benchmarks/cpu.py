"""A training step on the CPU against its peers: SmolLM2-135M's shape, and one LLaMA-7B block.

    python benchmarks/cpu.py                 # all of them, about 20 minutes on two cores
    python benchmarks/cpu.py smollm2         # one of them; also: block, block-bf16

Each rewrites its result file (a list of rows, as `neuroada bench --json` writes it) and its picture.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import RESULTS

from neuroada_cli.commands import bench

PEERS = ("mask", "scatter", "lora", "shira", "supertuning")
RUNS: dict[str, dict[str, Any]] = {
    "smollm2": {"model": "smollm2-135m", "batch": 4, "sequence": 256, "dtype": "fp32", "compare": PEERS},
    # a block without the vocabulary, so that nothing dilutes what the method adds
    "block": {"model": "llama-7b-block", "batch": 1, "sequence": 512, "dtype": "fp32", "compare": PEERS},
    "block-bf16": {"model": "llama-7b-block", "batch": 1, "sequence": 512, "dtype": "bf16", "compare": PEERS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step on the CPU against its peers.")
    parser.add_argument("runs", nargs="*", metavar="|".join(RUNS))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if unknown := set(given.runs) - set(RUNS):
        parser.error(f"{unknown.pop()} is not one of {', '.join(RUNS)}")
    for name in given.runs or RUNS:
        bench.run(
            **RUNS[name],
            k=(1, 20),
            rounds=given.rounds,
            warmup=1,
            device="cpu",
            json_out=RESULTS / f"step_cpu_{name}.json",
            plot_out=RESULTS / f"step_cpu_{name}.png",
        )


if __name__ == "__main__":
    main()
