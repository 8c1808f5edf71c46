"""Which rows of a set are learnt, and which are kept from training: the same for `train` and `eval`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from neuroada_cli.data.batch import share_of
from neuroada_cli.data.sources import (
    KNOWN_SETS,
    Rows,
    field_for,
    load_rows,
    require_source,
    split_source,
    take,
)
from neuroada_cli.errors import DataError
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks import gsm8k, leakage
from neuroada_cli.tasks.glue import half_of_validation
from neuroada_cli.tasks.task import Task


@dataclass(frozen=True)
class TrainingSet:
    """Places in `rows`, ascending: learnt, held_out for validation, and dropped for being test questions."""

    rows: Rows
    learnt: Sequence[int]
    held_out: Sequence[int]
    dropped: list[int]
    also: tuple[Further, ...] = ()

    @property
    def source(self) -> str:
        """All of it in words."""
        return " + ".join(
            [self.rows.source, *(f"{each.rows.source} x {each.weight:g}" for each in self.also)]
        )


@dataclass(frozen=True)
class Further:
    """Rows of a further source, and the places of those that are learnt: one for each time."""

    rows: Rows
    weight: float
    learnt: list[int]
    dropped: int = 0


def training_set(
    section: DataSection,
    task: Task,
    seed: int,
    scored: Collection[Task] = (),
    console: Console | None = None,
) -> TrainingSet:
    """Load the training rows and part them.

    The last `data.validation_rows` (of GSM8K by itself, 300) are held out; `data.drop_leaked` drops those
    that the test sets of the tasks `scored` ask, too; `data.limit` chooses among the rest by seed, also of
    those of `data.also`, of which each counts as often as it is shown. console: for `load_rows`.
    Raises DataError or RecipeError, with counts and places.
    """
    source = section.train or require_source(task.sets.get("train"), "data.train")
    rows = load_rows(source, "train", section.data_dir, section.field, section.streaming, console)
    held_out = held_out_of(section, len(rows)) or _default_held_out(section, task)
    if held_out >= len(rows):
        raise DataError(
            f"{held_out} validation rows cannot be held out of {len(rows)}",
            rows.source,
            "lower data.validation_rows",
        )
    first = len(rows) - held_out
    dropped: list[int] = []
    seen: Collection[str] = ()
    if section.drop_leaked:
        seen = leakage.questions_of_tests(scored, section.data_dir)
        dropped = leakage.teaching(rows, seen, section.columns, first)
    gone = frozenset(dropped)
    kept = [place for place in range(first) if place not in gone] if gone else range(first)
    if not kept:
        raise DataError(f"all {first} rows are test questions", rows.source, "set data.drop_leaked: false")
    also = [_further(name, weight, section, seen, seed) for name, weight in section.also.items()]
    if not also:
        taken = take(kept, section.limit, seed)
        learnt = kept if len(taken) == len(kept) else [kept[at] for at in taken]
        return TrainingSet(rows, learnt, list(range(first, len(rows))), dropped)
    all_places = [(0, place) for place in kept]
    all_places += [(n, place) for n, each in enumerate(also, 1) for place in each.learnt]
    chosen = [all_places[at] for at in take(all_places, section.limit, seed)]
    parts: list[list[int]] = [[] for _ in range(1 + len(also))]
    for number, place in chosen:
        parts[number].append(place)
    limited = tuple(replace(each, learnt=parts[n]) for n, each in enumerate(also, 1))
    return TrainingSet(rows, parts[0], list(range(first, len(rows))), dropped, limited)


def _further(name: str, weight: float, section: DataSection, seen: Collection[str], seed: int) -> Further:
    """Each row as often as the weight says; of the part of a time a choice by seed."""
    rows = load_rows(name, "train", section.data_dir)  # data.field speaks of the first source
    dropped = set(leakage.teaching(rows, seen, columns_of(section, rows))) if seen else set()
    kept = [place for place in range(len(rows)) if place not in dropped]
    whole, part = divmod(weight, 1)
    some = take(kept, round(part * len(kept)), seed) if part else []
    places = kept * int(whole) + [kept[at] for at in some]
    if not places:
        raise DataError(f"gives no rows with the weight {weight:g}", rows.source, "raise it in data.also")
    return Further(rows, weight, places, len(dropped))


def columns_of(section: DataSection, rows: Rows) -> dict[str, str]:
    """`data.columns`, which speaks of the first source; of another one only where it has such columns."""
    first = next(iter(rows.rows), {})
    return section.columns if set(section.columns.values()) & set(first) else {}


def validation_set(section: DataSection, task: Task) -> tuple[Rows, Sequence[int]] | None:
    """A validation set beside the training rows, and the places of those of it that choose checkpoints; None
    where there is none.

    Of GLUE's own set that is one half, since the other one is the test set: also where it is written out.
    Raises DataError.
    """
    own = task.sets.get("validation")
    source = section.validation or own
    if source is None:
        return None
    rows = load_rows(source, "validation", section.data_dir, field_for(source, section.field))
    if task.family == "glue" and own is not None and _is_set(rows, source, own, section.data_dir):
        return rows, half_of_validation(rows.rows, "selection")
    return rows, range(len(rows))


def _is_set(rows: Rows, source: str, own: str, data_dir: str | None) -> bool:
    """Whether rows are those of the task's own set, by name or by content."""
    if _named(source) == _named(own):
        return True
    try:
        return load_rows(own, "validation", data_dir).sha256 == rows.sha256
    except DataError:  # nowhere, so that nothing can be scored on it either
        return False


def _named(source: str) -> tuple[str, str]:
    name, split = split_source(source, "validation")
    return KNOWN_SETS.get(name, name), split


def held_out_of(section: DataSection, rows: int) -> int:
    """How many of so many training rows `data.validation_rows` holds out; a share is rounded up."""
    asked = section.validation_rows
    return share_of(asked, rows) if isinstance(asked, float) else asked


def _default_held_out(section: DataSection, task: Task) -> int:
    own_set = section.train in (None, task.sets.get("train")) and section.validation is None
    return gsm8k.HELD_OUT if own_set and task.family == "gsm8k" else 0
