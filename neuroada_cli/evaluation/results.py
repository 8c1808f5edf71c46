"""What is known of scored rows, tasks and evaluations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CLEAN_BELOW = 0.01  # a task counts as clean while less than so much of it was trained on


@dataclass(frozen=True)
class Prediction:
    """One scored row.

    extracted  what the protocol's rule found
    strict     by our stricter scorer, if it ran
    leaked     whether its question was trained on; None where the training set is not known
    asked      False: its prompt alone fills the model's context, so it was not answered
    credit     the share of a point that it gets, under rules that give parts of one
    loss       of a row that is scored by it: summed over its `targets` tokens; before: the same of its base
    cut        of such a row, and of one that gets a class or score: only a part of its tokens was looked at
    """

    row: int
    prompt: str
    prediction: str
    extracted: str
    reference: str
    correct: bool
    strict: bool | None = None
    leaked: bool | None = None
    asked: bool = True
    credit: float | None = None
    loss: float | None = None
    targets: int | None = None
    before: float | None = None
    cut: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """As it is kept: what few tasks have is there only where it is known."""
        rare = ("loss", "targets", "before", "cut")
        return {key: value for key, value in asdict(self).items() if value is not None or key not in rare}


@dataclass(frozen=True)
class TaskResult:
    """Scores of one task; shares from 0 to 1 (correlations from -1 to 1; perplexity from 1, lower is better).

    unparsed  rows in which no answer was found: they count as wrong, and are shown
    majority  accuracy of always giving the most frequent reference (not for free numbers)
    leaked    rows whose question was trained on, by training_set; both None where that is not known
    unasked   rows whose prompt alone fills the model's context: they count as wrong
    cut       rows that were not written about but looked at, and are longer than what was looked at
    """

    task: str
    n: int
    score: float
    metric: str
    unparsed: int
    strict: float | None
    majority: float | None
    seconds: float
    tokens: int
    metrics: dict[str, float] = field(default_factory=dict)
    leaked: int | None = None
    training_set: str | None = None
    unasked: int = 0
    cut: int = 0

    @property
    def clean(self) -> bool | None:
        """Whether the score measures more than memory; None where the training set is not known."""
        return None if self.leaked is None else self.leaked < CLEAN_BELOW * self.n


@dataclass(frozen=True)
class EvalResult:
    """Scores and predictions by task, and the folder they were written to (None: to none)."""

    results: dict[str, TaskResult]
    predictions: dict[str, list[Prediction]]
    folder: Path | None
