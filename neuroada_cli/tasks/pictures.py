"""Classes of pictures, with a fresh head: a made set, a published one, and pictures of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from neuroada_cli.data.batch import Example
from neuroada_cli.data.images import pictures_in
from neuroada_cli.data.made_pictures import LABELS
from neuroada_cli.data.reading import Row
from neuroada_cli.errors import RecipeError, nearest
from neuroada_cli.tasks.task import Split, Task

OWN = "image_classes"  # the task of one's own pictures
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def class_example(labels: Sequence[str], key: str = "image") -> Callable[[Row, int, str], Example]:
    """A row's picture and the number of its `label`, which is a name among `labels` or its number."""
    numbers = {label: number for number, label in enumerate(labels)}

    def example(row: Row, number: int, protocol: str) -> Example:
        label = row["label"]
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise TypeError(f"label is {type(label).__name__}, not a name or a number")
        if isinstance(label, str) and label not in numbers:
            raise ValueError(f"label {label[:40]!r} is none of the {len(labels)}; {nearest(label, labels)}")
        if isinstance(label, int) and label not in range(len(labels)):
            raise ValueError(f"label {label} is outside 0..{len(labels) - 1}")
        answer = numbers[label] if isinstance(label, str) else label
        return Example("", "", answer, number, pictures=pictures_in(row, key))

    return example


def with_labels(task: Task, labels: Sequence[str]) -> Task:
    """A task of one's own pictures, with the recipe's labels. Raises RecipeError where there are none."""
    if len(labels) < 2:
        raise RecipeError(
            f"task {task.name} sorts pictures into classes, and data.labels names fewer than two",
            fix="write them there: labels: [cat, dog]",
        )
    return replace(task, example=class_example(labels), num_labels=len(labels), labels=tuple(labels))


def _task(name: str, labels: tuple[str, ...], sets: dict[Split, str], key: str = "image") -> Task:
    return Task(
        name=name,
        family="pictures",
        kind="classification",
        example=class_example(labels, key),
        sets=sets,
        num_labels=len(labels) or None,
        labels=labels,
        pictures=True,
    )


TASKS = [
    _task("shapes", LABELS, {"train": "shapes", "validation": "shapes:validation", "test": "shapes"}),
    _task("cifar10", CIFAR10, {"train": "cifar10", "test": "cifar10"}, key="img"),
    _task(OWN, (), {}),
]
