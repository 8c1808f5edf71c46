"""What commands take of the processor before their work begins, beside what `import torch` takes alone.

    python benchmarks/commands.py        # rewrites benchmarks/results/commands.json

SmolLM2-135M, K=1, rows that the package makes. One thread; the processor's seconds of a process and of those
that it starts (user and system), not the clock on the wall, so that a busy machine does little harm. In every
round each command runs once; a figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import RESULTS, whole_process

from neuroada_cli import files, hub
from neuroada_cli.machine.cache import cache_folder
from neuroada_cli.machine.load import machine

RECIPE = """
name: bench
model: {path: MODEL}
select: {k: 1}
data: {task: due_dates, limit: 64, validation_limit: 16}
train: {max_steps: 2, batch_size: 4}
"""
SUITE = """
name: bench
recipes: {SmolLM2: r.yaml}
variants: {K=1: {}}
score: false
seeds: SEEDS
"""
CLI = (sys.executable, "-m", "neuroada_cli")
TRAIN = (*CLI, "train", "r.yaml", "--overwrite")
NEVER_SEEN = "validate, a model never seen before"  # with an empty cache folder
NEVER_ASKED = "train --dry-run, never asked before"  # with one that knows the model, but no dry run of it
ASKED = "train --dry-run"
IN_OWN_CACHE = (NEVER_SEEN, NEVER_ASKED, ASKED)
COMMANDS: dict[str, tuple[str, ...]] = {
    "import torch": (sys.executable, "-c", "import torch"),
    "import torch, and transformers' model code": (
        sys.executable, "-c", "import torch; from transformers import LlamaForCausalLM",
    ),
    NEVER_SEEN: (*CLI, "validate", "r.yaml"),
    "validate": (*CLI, "validate", "r.yaml"),
    "select": (*CLI, "select", "r.yaml", "--out", "s.safetensors", "--overwrite"),
    NEVER_ASKED: (*CLI, "train", "r.yaml", "--dry-run"),
    ASKED: (*CLI, "train", "r.yaml", "--dry-run"),
    "train, 2 steps": TRAIN,
    "train, 4 steps": (*TRAIN, "--set", "train.max_steps=4"),
    "bench --suite, 1 run": (*CLI, "bench", "--suite", "1.yaml", "--out", "suite-1"),
    "bench --suite, 4 runs": (*CLI, "bench", "--suite", "4.yaml", "--out", "suite-4"),
    "merge": (*CLI, "merge", "runs/bench", "merged", "--overwrite"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Processor seconds of whole commands.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-write", action="store_true", help="leave the result file alone")
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory(prefix="neuroada-bench-") as room:
        folder = Path(room)
        model = hub.resolve_model("smollm2-135m")  # the folder itself: an empty cache would unpack it anew
        (folder / "r.yaml").write_text(RECIPE.replace("MODEL", str(model)), encoding="utf-8")
        for count in (1, 4):
            text = SUITE.replace("SEEDS", str(list(range(count))))
            (folder / f"{count}.yaml").write_text(text, encoding="utf-8")
        for number in range(given.rounds):
            for made in ("runs", "suite-1", "suite-4"):  # checks tell of a run that is there
                shutil.rmtree(folder / made, ignore_errors=True)
            for name, command in COMMANDS.items():
                own = folder / f"cache-{number}"
                if name == NEVER_ASKED:
                    for kernels in cache_folder().glob("kernels-*"):  # compiled once for all
                        shutil.copy(kernels, own)
                more = {"NEUROADA_CACHE": str(own)} if name in IN_OWN_CACHE else {}
                seconds[name].append(whole_process(command, folder, more).processor)
                print(f"  {seconds[name][-1]:6.2f} s  {name}", flush=True)
    rows: list[dict[str, Any]] = [
        {"what": name, "processor_seconds": round(statistics.median(found), 2), "rounds": len(found)}
        for name, found in seconds.items()
    ]
    print(json.dumps(rows))
    if not given.no_write:
        files.write_json(RESULTS / "commands.json", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
