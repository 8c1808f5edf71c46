"""Which rows of a set are learnt, and which are kept from training: the same for `train` and `eval`."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from neuroada_cli.data.sources import Rows, load_rows, require_source, take
from neuroada_cli.errors import DataError
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks import gsm8k, leakage
from neuroada_cli.tasks.task import Task


@dataclass(frozen=True)
class TrainingSet:
    """Places in `rows`, ascending: learnt, held_out for validation, and dropped for being test questions."""

    rows: Rows
    learnt: list[int]
    held_out: list[int]
    dropped: list[int]


def training_set(section: DataSection, task: Task, seed: int, scored: Collection[Task] = ()) -> TrainingSet:
    """Load the training rows and part them.

    The last `data.validation_rows` (of GSM8K by itself, 300) are held out; `data.drop_leaked` drops those
    that the test sets of the tasks `scored` ask, too; `data.limit` chooses among the rest by seed.
    Raises DataError or RecipeError, with counts and places.
    """
    source = section.train or require_source(task.sets.get("train"), "data.train")
    rows = load_rows(source, "train", section.data_dir, section.field)
    held_out = held_out_of(section, len(rows)) or _default_held_out(section, task)
    if held_out >= len(rows):
        raise DataError(
            f"{held_out} validation rows cannot be held out of {len(rows)}",
            rows.source,
            "lower data.validation_rows",
        )
    first = len(rows) - held_out
    dropped: list[int] = []
    if section.drop_leaked:
        seen = leakage.questions_of_tests(scored, section.data_dir)
        dropped = leakage.leaked(rows, seen, first)
    kept = sorted({*range(first)} - {*dropped})
    if not kept:
        raise DataError(f"all {first} rows are test questions", rows.source, "set data.drop_leaked: false")
    learnt = [kept[place] for place in take(kept, section.limit, seed)]
    return TrainingSet(rows, learnt, list(range(first, len(rows))), dropped)


def held_out_of(section: DataSection, rows: int) -> int:
    """How many of so many training rows `data.validation_rows` holds out; a share is rounded up."""
    asked = section.validation_rows
    return math.ceil(asked * rows) if isinstance(asked, float) else asked


def _default_held_out(section: DataSection, task: Task) -> int:
    own_set = section.train in (None, task.sets.get("train")) and section.validation is None
    return gsm8k.HELD_OUT if own_set and task.family == "gsm8k" else 0
