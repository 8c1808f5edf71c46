"""One cell of a suite in a process of its own: train, then score, each only once.

    python -m neuroada_cli.suites.cell FOLDER [--score]

FOLDER/recipe.yaml says what; trained.json and scored.json hold what came out. A process of its own gives
every run the same start (allocator, random streams, peak memory) and survives what another one does.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from neuroada_cli import failures, files
from neuroada_cli.recipe import load_recipe
from neuroada_cli.report import read_metrics

RECIPE, TRAINED, SCORED, RUN = "recipe.yaml", "trained.json", "scored.json", "run"


def run(folder: Path, score: bool) -> None:
    """Bring the cell to its end, from wherever an earlier process left it."""
    recipe = load_recipe(folder / RECIPE)
    if not (folder / TRAINED).is_file():
        from neuroada_cli.commands import train

        began = (folder / RUN / "recipe.yaml").is_file()
        result = train.run(recipe, resume=began)
        files.write_json(folder / TRAINED, _trained(result, recipe.train.batch_size))
    if score and not (folder / SCORED).is_file():
        from neuroada_cli.commands import eval as command

        found = command.run(str(folder / RUN), recipe=recipe, out=folder / "eval", overwrite=False)
        scores = {task: dataclasses.asdict(score) for task, score in found.results.items()}
        files.write_json(folder / SCORED, scores)


def _trained(result: Any, batch_size: int) -> dict[str, Any]:
    entries = read_metrics(result.run_dir / "metrics.jsonl")
    evaluations = [entry for entry in entries if entry["kind"] == "eval"]
    metric = evaluations[-1]["metric_name"] if evaluations else None
    steps = [entry for entry in entries if entry["kind"] == "train"]
    return {
        "best_value": result.best_value,
        "metric": metric,  # None: best_value is a loss, lower is better
        "evaluations": [(entry["step"], entry["loss"], entry["metric"]) for entry in evaluations],
        "losses": [entry["loss"] for entry in steps],
        "loss": result.loss,
        "steps": result.steps,
        "seconds": result.seconds,
        "rows_per_second": result.steps * batch_size / result.seconds,
        "peak_bytes": result.peak_bytes,
        "trainable": result.trainable,
        "total": result.total,
    }


def main() -> None:
    words = sys.argv[1:]
    try:
        run(Path(words[0]), "--score" in words[1:])
    except BaseException as error:
        sys.exit(failures.report(error, False))


if __name__ == "__main__":
    main()
