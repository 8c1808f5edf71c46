"""`neuroada eval --harness`: a model, adapter or run on tasks of lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from neuroada_cli import __version__, files, hub
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.folder import method_in
from neuroada_cli.adapter.results import results_folder
from neuroada_cli.evaluation import harness
from neuroada_cli.evaluation.harness import Asked, Score
from neuroada_cli.foreign_text import one_line, shown
from neuroada_cli.show.notes import say


def run(
    target: str | Path,
    asked: Asked,
    out: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    base: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
) -> dict[str, Score]:
    """Score `target` (base, adapter, run or merged folder, hub id); the other settings are those of `eval`.

    Scores and rows go to `harness/` in the results folder.
    Raises ResourceError where lm-eval is not installed; RecipeError (also for tasks that the method's model
    cannot be asked), DataError and OutputError before the model loads; ModelError.
    """
    harness.require()
    console = Console(quiet=quiet)
    found = adapted.find_target(str(target))
    folder = (Path(out) if out is not None else results_folder(found)) / "harness"
    if not overwrite:
        harness.refuse_finished(folder, asked.names)
    with console.status("reading tasks"):
        tasks = harness.tasks_of(asked)
    if not overwrite:
        harness.refuse_finished(folder, list(tasks["tasks"]))
    if found.adapter is not None:
        harness.refuse_unwritten(tasks, method_in(found.adapter))
    device = hub.choose_device(device)
    with console.status("loading the model"):
        subject = adapted.load(
            found, hub.Work(), dtype, device, base=base, trust_remote_code=trust_remote_code
        )
    with files.Lock(folder):
        scores = harness.score(subject.model, subject.tokenizer, tasks, asked)
        subject.refuse_written_to()
        left_on = harness.left_on(subject.model, tasks)
        about = subject.identity | {
            "asked": asdict(asked),
            "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."),
            "device": device,
            "generation_config": left_on,
            "versions": _versions(),
        }
        harness.keep(folder, scores, about)
    console.print(_table(scores, f"{shown(target)}   lm-eval {about['versions']['lm_eval']}"))
    for name, score in scores.items():
        if score.cut and name in tasks["tasks"]:
            say(
                console,
                f"{shown(name)}: {score.cut:,} of {score.n:,} prompts, with their answers, are longer than "
                f"the model's {score.max_length:,} tokens; their beginning was cut",
            )
    if left_on:
        said = one_line(", ".join(f"{key} {value}" for key, value in left_on.items()))
        say(
            console,
            f"written under the model's own generation_config, as lm-eval leaves it on: {shown(said)}; "
            "`eval --tasks` writes the most likely text without",
        )
    say(console, f"scores and rows: {shown(folder)}")
    return scores


def _versions() -> dict[str, Any]:
    return {
        "neuroada": __version__,
        "lm_eval": version(harness.PACKAGE),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _table(scores: dict[str, Score], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("task", "metric"):
        table.add_column(name, no_wrap=name == "task")
    for name in ("value", "±", "rows", "shots"):
        table.add_column(name, justify="right")
    for task, found in scores.items():
        for metric, value in found.metrics.items():
            name, comma, rest = metric.partition(",")
            if name.endswith("_stderr"):
                continue
            spread = found.metrics.get(f"{name}_stderr{comma}{rest}")
            table.add_row(
                shown(task), shown(metric), f"{value:.4f}", "" if spread is None else f"{spread:.4f}",
                f"{found.n:,}", "" if found.fewshot is None else str(found.fewshot),
            )  # fmt: skip
    return table
