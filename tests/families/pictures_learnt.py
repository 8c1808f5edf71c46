"""Whether tiny models that write about pictures learn to see: `make pictures-learnt`.

python tests/families/pictures_learnt.py             # all; writes docs/results/pictures_learnt.json anew

Each model is made from its config with random weights, so that whatever it knows in the end it was taught
by the run. It is asked for the colour or the shape of what lies in a made picture; the pictures that it is
scored on were never trained on. Who looks at no picture gets a third of them right, or as many as the most
frequent answer to each question has, which stands beside it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "pictures_learnt.json"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from tiny_pictures import tiny_writer_folder  # noqa: E402
from tiny_run import tiny_recipe  # noqa: E402

from neuroada_cli.commands import eval as evaluate  # noqa: E402
from neuroada_cli.commands import merge, train  # noqa: E402
from neuroada_cli.data.made_pictures import QUESTIONS  # noqa: E402

TASK, K, ROWS, EPOCHS, HELD_OUT = "shapes_vqa", 8, 1600, 4, 300
MODELS = ["llava", "qwen2_5_vl", "smolvlm"]


def learnt(name: str, room: Path) -> dict[str, Any]:
    """What a model of this type gets right of held-out pictures after training, and whether its merged folder
    answers the same.
    """
    base = tiny_writer_folder(room / "base", name)
    recipe = tiny_recipe(
        base,
        room / "run",
        select={"k": K, "targets": ["language", "vision", "projector", "lm_head"]},
        data={"task": TASK, "limit": ROWS, "validation_limit": 50},
        optim={"lr": 1e-2, "schedule": "cosine", "warmup_ratio": 0.1},
        train={
            "epochs": EPOCHS,
            "batch_size": 16,
            "micro_batch_size": None,
            "eval_every": 10**6,
            "group_by_length": False,  # by its length alone one can tell a row's answer
        },
        eval={"limit": HELD_OUT, "max_new_tokens": 10},
    )
    run = train.run(recipe, quiet=True)
    found = evaluate.run(str(run.run_dir), quiet=True).predictions[TASK]
    merge.run(run.run_dir, room / "merged", quiet=True)
    again = evaluate.run(str(room / "merged"), quiet=True).predictions[TASK]
    right: dict[str, list[bool]] = defaultdict(list)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in found:
        [asked] = (asked for asked, question in QUESTIONS.items() if question in row.prompt)
        right[asked].append(bool(row.correct))
        answers[asked][row.reference] += 1
    return {
        "model": name,
        "trained": run.trainable,
        "parameters": run.total,
        "steps": run.steps,
        "right": {asked: sum(marks) / len(marks) for asked, marks in sorted(right.items())},
        "rows": {asked: len(marks) for asked, marks in sorted(right.items())},
        "most frequent": {asked: max(n.values()) / n.total() for asked, n in sorted(answers.items())},
        "merged answers the same": found == again,
    }


def main() -> None:
    torch.set_num_threads(1)
    about = {"k": K, "rows": ROWS, "epochs": EPOCHS, "held out": HELD_OUT}
    rows = []
    for name in MODELS:
        with tempfile.TemporaryDirectory(prefix="neuroada-pictures-") as room:
            rows.append(learnt(name, Path(room)))
        print(json.dumps(rows[-1]), flush=True)
        versions = {package: version(package) for package in ("transformers", "torch")}
        RESULTS.write_text(json.dumps({"versions": versions, "about": about, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
