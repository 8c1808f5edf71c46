"""`neuroada eval --predictions`: scores of answers that others wrote, by our rules."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from neuroada_cli.evaluation import display, foreign
from neuroada_cli.evaluation.records import Records
from neuroada_cli.evaluation.results import EvalResult
from neuroada_cli.evaluation.run import summarise
from neuroada_cli.foreign_text import shown
from neuroada_cli.ranks.place import refuse_strangers
from neuroada_cli.show.notes import say
from neuroada_cli.tasks.registry import get_protocol, get_task
from neuroada_cli.tasks.task import under


def run(
    file: str | Path,
    task_name: str | None,
    protocol: str,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> EvalResult:
    """Score foreign predictions: JSON lines with `instruction`, `prediction` and `answer`.

    task_name  None: the answers tell which rule scores them
    out        folder for scores and rows; without one they are only shown
    Raises DataError for a file or a row that is not that, RecipeError for a task that is not generation,
    OutputError for an `out` that holds another result.
    """
    refuse_strangers(True, "scores predictions")
    console, rules = Console(quiet=quiet), get_protocol(protocol)
    task = get_task(task_name) if task_name is not None else None
    rows = foreign.read(Path(file))
    if task is None:
        task, kind = foreign.recognise(rows)
        line = f"all answers are {kind}, so they are scored by the rule of {task.name}"
        say(console, line, markup=False)
    found = foreign.score(rows, task, rules)
    display.tell_unscored([under(task, rules)], rules.name, console)
    scores = summarise(task, found, 0.0, 0)
    if out is not None:
        foreign.keep(Records(Path(out)), rows, found, scores, rules, overwrite)
    console.print(display.table({task.name: scores}, f"{shown(file)}   protocol {rules.name}"))
    if out is not None:
        say(console, f"predictions and results: {shown(out)}")
    return EvalResult({task.name: scores}, {task.name: found}, None if out is None else Path(out))
