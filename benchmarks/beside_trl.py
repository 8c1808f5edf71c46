"""A whole training beside another trainer's: `neuroada train` at K=1 and TRL's SFTTrainer with LoRA r8.

    python benchmarks/beside_trl.py      # rewrites benchmarks/results/beside_trl.json; needs trl

SmolLM2-135M in fp32, 4 rows a step, the same rows (texts that the package makes, five to a prompt; only the
answer is learnt). Whole processes on one thread, by what they take of the processor: each trains a few steps
and a few more, so that a step is the difference, and what surrounds the steps is the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from common import RESULTS, Taken, whole_process

from neuroada_cli import files, hub
from neuroada_cli.data.made_rows import make_rows
from neuroada_cli.machine.load import machine

STEPS = (2, 6)
NEUROADA = (sys.executable, "-m", "neuroada_cli")
TEXTS, ROWS = 5, 64
RECIPE = """
name: bench
model: {path: MODEL, dtype: fp32}
select: {k: 1}
data: {task: instruct, train: rows.jsonl, protocol: reft}
train: {batch_size: 4, max_steps: STEPS}
"""
# the rows, the rank and the number of steps are given; the rest is the trainer's own choice
TRL = """
import sys
import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

torch.set_num_threads(1)
arguments = SFTConfig(
    "trl-out", max_steps=int(sys.argv[2]), per_device_train_batch_size=4, learning_rate=2e-4, use_cpu=True,
    bf16=False, report_to="none", save_strategy="no", model_init_kwargs={"dtype": "float32"},
)
rows = load_dataset("json", data_files="rows.jsonl", split="train")
adapter = LoraConfig(r=8, target_modules="all-linear")
trainer = SFTTrainer(sys.argv[1], args=arguments, train_dataset=rows, peft_config=adapter)
trainer.train()
trainer.save_model()
"""


def write_rows(file: Path) -> None:
    made = make_rows("train", TEXTS * ROWS)
    rows = []
    for number in range(ROWS):
        group = made[TEXTS * number : TEXTS * (number + 1)]
        listed = "\n".join(f"{place}. {row['message']}" for place, row in enumerate(group, start=1))
        question = f"Which date is the last of these messages about?\n{listed}\n"
        answer = f"It is about {group[-1]['date']}."  # datasets would read a date alone as a date
        rows.append(json.dumps({"prompt": question, "completion": answer}))
    files.write_text(file, "\n".join(rows) + "\n")


def row(what: str, few: Taken, more: Taken) -> dict[str, Any]:
    step = (more.processor - few.processor) / (STEPS[1] - STEPS[0])
    return {
        "what": what,
        "step_seconds": round(step, 3),
        "around_seconds": round(few.processor - STEPS[0] * step, 2),
        "resident_bytes": max(few.resident_bytes, more.resident_bytes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A whole training beside TRL's.")
    parser.add_argument("--no-write", action="store_true", help="leave the result file alone")
    given = parser.parse_args()
    model = hub.resolve_model("smollm2-135m")
    rows = []
    with tempfile.TemporaryDirectory(prefix="neuroada-bench-") as room:
        folder = Path(room)
        write_rows(folder / "rows.jsonl")
        (folder / "trl_run.py").write_text(TRL, encoding="utf-8")
        recipe = RECIPE.replace("MODEL", str(model))
        for count in STEPS:
            (folder / f"{count}.yaml").write_text(recipe.replace("STEPS", str(count)), encoding="utf-8")

        ways: dict[str, Callable[[int], list[str]]] = {
            "neuroada train, K=1": lambda n: [*NEUROADA, "train", f"{n}.yaml", "--overwrite"],
            "TRL, LoRA r8, as it comes": lambda n: [sys.executable, "trl_run.py", str(model), str(n)],
        }
        for what, command in ways.items():
            few, more = (whole_process(command(count), folder) for count in STEPS)
            rows.append(row(what, few, more))
            print(json.dumps(rows[-1]), flush=True)
    about = machine()
    about["versions"] |= {"trl": metadata.version("trl")}
    if not given.no_write:
        files.write_json(RESULTS / "beside_trl.json", {"machine": about, "rows": rows})


if __name__ == "__main__":
    main()
