"""GLUE: eight sentence and sentence-pair tasks with a fresh classification (or regression) head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from neuroada_cli.data.batch import Example
from neuroada_cli.data.reading import Row
from neuroada_cli.tasks.task import Task, text

# task -> (first text, second text, labels by number, metrics: the first one is reported)
_TWO = ("entailment", "not_entailment")
FIELDS: dict[str, tuple[str, str | None, tuple[str, ...], tuple[str, ...]]] = {
    "cola": ("sentence", None, ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "sst2": ("sentence", None, ("negative", "positive"), ("accuracy",)),
    "mrpc": ("sentence1", "sentence2", ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "stsb": ("sentence1", "sentence2", (), ("pearson", "spearman")),
    "qqp": ("question1", "question2", ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": ("premise", "hypothesis", ("entailment", "neutral", "contradiction"), ("accuracy",)),
    "qnli": ("question", "sentence", _TWO, ("accuracy",)),
    "rte": ("sentence1", "sentence2", _TWO, ("accuracy",)),
}
ALL = tuple(FIELDS)
SELECTION_ROWS = 1000
SMALL = 5000


def _example_of(name: str) -> Callable[[Row, int, str], Example]:
    first, second, labels, _ = FIELDS[name]

    def example(row: Row, number: int, protocol: str) -> Example:
        label = row["label"]
        if isinstance(label, bool) or not isinstance(label, int | float):
            raise TypeError(f"label is {type(label).__name__}, not a number")
        if not math.isfinite(label):
            raise ValueError(f"label is {label}")
        if labels and label not in range(len(labels)):
            raise ValueError(f"label {label} is outside 0..{len(labels) - 1} (unlabelled test rows are -1)")
        return Example(text(row, first), "", label, number, text(row, second) if second else None)

    return example


def half_of_validation(
    rows: Sequence[Row], half: Literal["selection", "report"], seed: int = 42
) -> list[int]:
    """Row numbers of one part of a validation set (LoReFT's rule, used by NeuroAda).

    1,000 rows, or half of a set of at most 5,000, choose the best epoch ("selection"); the rest is reported
    ("report"), since the test sets have no public labels.
    """
    count = len(rows) // 2 if len(rows) <= SMALL else SELECTION_ROWS
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[:count] if half == "selection" else order[count:])


def _task(name: str) -> Task:
    labels, metrics = FIELDS[name][2:]
    validation = f"glue_{name}:{'validation_matched' if name == 'mnli' else 'validation'}"
    return Task(
        name=name,
        family="glue",
        kind="classification" if labels else "regression",
        example=_example_of(name),
        sets={"train": f"glue_{name}", "validation": validation, "test": validation},
        metrics=metrics,
        num_labels=len(labels) or 1,
        labels=labels,
    )


TASKS = [_task(name) for name in FIELDS]
