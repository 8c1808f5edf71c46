"""Which rows score a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from neuroada_cli.data.batch import Example
from neuroada_cli.data.glue import half_of_validation
from neuroada_cli.data.instruct import shaped
from neuroada_cli.data.sources import Rows, load_rows, require_source
from neuroada_cli.data.task import Protocol, Task, examples_of
from neuroada_cli.data.tasks import get_task
from neuroada_cli.errors import RecipeError
from neuroada_cli.recipe import DataSection


@dataclass(frozen=True)
class TaskRows:
    """A task with the rows that score it; part says in words which rows of their source they are."""

    task: Task
    rows: Rows
    examples: list[Example]
    part: str


def prepare(
    task: Task,
    rules: Protocol,
    data: DataSection | None,
    data_dir: str | None,
    limit: int | None,
    tokenizer: Callable[[], Any],
) -> TaskRows:
    """Load the rows and make examples of them.

    data       what training used: tells the held-out rows of data of one's own
    limit      only the first so many rows
    tokenizer  called for rows in formats of one's own, which may need its chat template
    Raises DataError and RecipeError, with places and counts.
    """
    rows, part = _rows_of(task, data, data_dir)
    if limit is not None and limit < len(rows):
        rows, part = rows.subset(range(limit)), f"the first {limit} of {part}"
    if task.name == "instruct":
        task = shaped(task, rows.rows, data.format if data else None, tokenizer())
    examples = examples_of(task, rows.rows, rules.name, rows.source, rows.lines, rows.numbers)
    return TaskRows(task, rows, examples, part)


def _rows_of(task: Task, data: DataSection | None, data_dir: str | None) -> tuple[Rows, str]:
    source = task.sets.get("test")
    if source is not None:
        rows = load_rows(source, "test", data_dir)
        if task.family == "glue":
            kept = half_of_validation(rows.rows, "report")
            return rows.subset(kept), "the validation rows that chose no checkpoint"
        return rows, "all rows"
    if data is not None and get_task(data.task) is task:
        if data.validation:
            return load_rows(data.validation, "validation", data_dir), "all rows"
        if data.validation_rows:
            rows = load_rows(require_source(data.train, "data.train"), "train", data_dir)
            first = max(0, len(rows) - data.validation_rows)
            return rows.subset(range(first, len(rows))), "the rows that were held out of training"
    raise RecipeError(
        f"{task.name} has no test set of its own", fix="set data.validation or data.validation_rows"
    )
