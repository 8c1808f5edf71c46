"""Classes of texts of one's own, with a fresh head: rows with `text` and `label`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from neuroada_cli.data.batch import Example
from neuroada_cli.data.reading import KINDS, Row
from neuroada_cli.data.sources import Rows, load_rows, require_source
from neuroada_cli.data.typed import require_plain
from neuroada_cli.errors import DataError, RecipeError, nearest
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks.notes import renamed
from neuroada_cli.tasks.task import Task, text

OWN = "text_classes"
TEXTS = ("text", "sentence", "sentence1", "premise", "question")
PAIRS = ("pair", "text_pair", "sentence2", "hypothesis")
MOST = 1000  # classes that are found by themselves: more are rather an answer or a number per row


def with_labels(task: Task, section: DataSection) -> Task:
    """The task with the recipe's labels, or those of its training rows. Raises RecipeError and DataError."""
    labels = section.labels or labels_of(section)
    if len(labels) < 2:
        raise RecipeError(
            f"task {task.name} sorts texts into classes, and there are fewer than two",
            fix="write them to data.labels: [bad, good]",
        )
    example = class_example(labels, section.columns)
    return replace(task, example=example, num_labels=len(labels), labels=tuple(labels))


def labels_of(section: DataSection) -> list[str]:
    """The labels in the training rows, numbers by size, names by the alphabet.

    Raises DataError for rows without a label, and for more labels than classes could be.
    """
    source, found = require_source(section.train, "data.train"), set[str]()
    found |= _labels_in(load_rows(source, "train", section.data_dir, section.field), section)
    for each in section.also:
        found |= _labels_in(load_rows(each, "train", section.data_dir), section)
    if len(found) > MOST:
        raise DataError(
            f"label holds {len(found):,} different values, which are no classes",
            source,
            "name the classes in data.labels, if they are",
        )
    return _ordered(found)


def _labels_in(rows: Rows, section: DataSection) -> set[str]:
    column = section.columns.get("label", "label")
    missing = [number for number, row in enumerate(rows.rows) if row.get(column) is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(rows)} rows have no {column} (the first is row {missing[0]}; columns "
            f"are {', '.join(key[:40] for key in rows.rows[missing[0]])})",
            rows.source,
            "say which column it is: data.columns: {text: review, label: stars}",
        )
    found: set[str] = set()
    for number, row in enumerate(rows.rows):
        try:
            found.add(label_text(row[column], column))
        except TypeError as error:
            place = f"{rows.source}:{rows.lines[number]}" if rows.lines else f"{rows.source}, row {number}"
            raise DataError(f"cannot be used: {error}", place) from None
    return found


def label_text(value: object, key: str = "label") -> str:
    """A label as a name: of a number its digits. Raises TypeError for what is neither text nor a number."""
    require_plain(key, value)
    if not isinstance(value, str | bool | int | float):
        raise TypeError(f"{key} is {KINDS.get(type(value).__name__, 'an object')}, not a name or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ordered(labels: Iterable[str]) -> list[str]:
    names = sorted(labels)
    return sorted(names, key=int) if all(_is_number(name) for name in names) else names


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and name.isascii()


def class_example(labels: Sequence[str], columns: dict[str, str]) -> Callable[[Row, int, str], Example]:
    """A row's text, or pair of texts, and the number of its label."""
    numbers = {label: number for number, label in enumerate(labels)}

    def example(row: Row, number: int, protocol: str) -> Example:
        row = renamed(row, columns)
        name = label_text(row["label"])
        if name not in numbers:
            raise ValueError(f"label {name[:40]!r} is none of the {len(labels)}; {nearest(name, labels)}")
        first = next((key for key in TEXTS if key in row), "text")
        second = next((key for key in PAIRS if key in row), None)
        pair = text(row, second) if second else None
        return Example(text(row, first), "", numbers[name], number, pair)

    return example


TASKS = [
    Task(
        name=OWN,
        family="classes",
        kind="classification",
        example=class_example((), {}),
        num_labels=None,
    )
]
