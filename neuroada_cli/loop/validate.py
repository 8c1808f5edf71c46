"""Validation: the loss per target, and a task's own metric where it has one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroada_cli.data.batch import Batch, listed
from neuroada_cli.errors import NumericsError
from neuroada_cli.loop.loss import class_error, row_logits, score_error, token_loss
from neuroada_cli.loop.signals import StopSignals


@dataclass(frozen=True)
class Metric:
    """A score of a classifier or regressor, higher is better.

    score  (predictions, labels) -> value; predictions are class numbers, or real scores for regression
    """

    name: str
    score: Callable[[list[float], list[float]], float]


@dataclass(frozen=True)
class Evaluation:
    """loss is the mean over all validation targets; metric is None where only the loss counts."""

    loss: float
    targets: int
    metric: float | None = None
    metric_name: str | None = None

    @property
    def value(self) -> float:
        """What the best checkpoint is chosen by."""
        return self.loss if self.metric is None else self.metric

    def better_than(self, value: float) -> bool:
        return self.value < value if self.metric is None else self.value > value


@torch.no_grad()
def validate(
    model: nn.Module,
    batches: Iterable[Batch],
    kind: str,
    metric: Metric | None = None,
    stop: StopSignals | None = None,
    step: int | None = None,
) -> Evaluation | None:
    """Evaluate without dropout and without touching any random state; None when `stop` came in between.

    step  optimizer steps done, for the message
    Raises NumericsError for a loss that is not finite, naming the rows.
    """
    device = next(model.parameters()).device
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    predictions: list[float] = []
    labels: list[float] = []
    sums: list[tuple[Tensor, list[int]]] = []  # by batch, with its rows
    with evaluating(model):
        for batch in batches:
            if stop is not None and stop.requested is not None:
                return None
            batch = batch.to(device)
            if kind == "generation":
                loss_sum, targets = token_loss(model, batch)
            else:
                logits_BC, targets = row_logits(model, batch), len(batch.rows)
                is_class = kind == "classification"
                loss_sum = (class_error if is_class else score_error)(logits_BC, batch.labels_BS)
                predictions += (logits_BC.argmax(dim=-1) if is_class else logits_BC[:, 0]).tolist()
                labels += batch.labels_BS.tolist()
            total += loss_sum
            count += targets
            sums.append((loss_sum, batch.rows))
    loss = total.item() / max(1, count)
    if not math.isfinite(loss):
        bad = [row for value, rows in sums if not math.isfinite(value.item()) for row in rows]
        when = f" at step {step}" if step is not None else ""
        raise NumericsError(
            f"the validation loss is not finite{when}, validation rows {listed(bad)}",
            fix="lower optim.lr, look at these rows, or set model.dtype: fp32",
        )
    if metric is None:
        return Evaluation(loss, count)
    return Evaluation(loss, count, metric.score(predictions, labels), metric.name)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards in the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
