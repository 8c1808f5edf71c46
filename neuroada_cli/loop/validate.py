"""Validation: the loss per target, and a task's own metric where it has one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli.data.batch import Batch, listed
from neuroada_cli.delta.sharded import deal_again
from neuroada_cli.loop.loss import class_error, row_logits, score_error, token_loss
from neuroada_cli.loop.modes import evaluating
from neuroada_cli.loop.numerics import not_numbers
from neuroada_cli.loop.turns import turns
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.stopping import Noted


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
    stop: Noted | None = None,
    step: int | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation | None:
    """Evaluate without dropout and without touching any random state; None when `stop` came in between.

    step   optimizer steps done, for the message
    ranks  take turns at the batches; all of them end with the same result
    Raises NumericsError for a loss that is not finite, naming the rows.
    """
    device = next(model.parameters()).device
    losses: list[Tensor] = []
    batches_done: list[_Done] = []
    stopped = False
    with evaluating(model):
        for turn in turns(batches, ranks):
            stopped = stop is not None and stop.requested is not None
            if ranks.sharded:  # the others cannot go on without this one
                stopped = bool(ranks.largest(int(stopped)))
            if stopped:
                break
            loss_sum, done = _evaluated(model, turn.batch.to(device), kind)
            if turn.counts:
                losses.append(loss_sum)
                batches_done.append(done)
    deal_again(model)
    told = torch.stack(losses).tolist() if losses else []
    every = ranks.collected([stopped, told, batches_done])
    if any(stopped for stopped, _, _ in every):
        return None
    sums: list[float] = _in_turn([losses for _, losses, _ in every])
    done_by_batch: list[_Done] = _in_turn([batches for _, _, batches in every])
    count = sum(targets for targets, *_ in done_by_batch)
    loss = sum(sums) / max(1, count)
    if not math.isfinite(loss):
        pairs = zip(sums, done_by_batch, strict=True)
        bad = [row for value, (_, rows, *_) in pairs if not math.isfinite(value) for row in rows]
        when = f" at step {step}" if step is not None else ""
        raise not_numbers(
            model,
            f"the validation loss is not finite{when}, validation rows {listed(bad)}",
            "lower optim.lr, look at these rows, or set model.dtype: fp32",
            begun=bool(step),
        )
    if metric is None:
        return Evaluation(loss, count)
    predictions = [value for *_, values, _ in done_by_batch for value in values]
    labels = [label for *_, labels in done_by_batch for label in labels]
    return Evaluation(loss, count, metric.score(predictions, labels), metric.name)


# of a batch: targets, its rows, and of a classifier or regressor predictions and labels
_Done = tuple[int, list[int], list[float], list[float]]


def _evaluated(model: nn.Module, batch: Batch, kind: str) -> tuple[Tensor, _Done]:
    """(summed loss, what else is to be known of the batch)."""
    if kind == "generation":
        loss_sum, targets = token_loss(model, batch)
        return loss_sum, (targets, batch.rows, [], [])
    logits_BC, is_class = row_logits(model, batch), kind == "classification"
    loss_sum = (class_error if is_class else score_error)(logits_BC, batch.labels_BS)
    predictions = (logits_BC.argmax(dim=-1) if is_class else logits_BC[:, 0]).tolist()
    return loss_sum, (len(batch.rows), batch.rows, predictions, batch.labels_BS.tolist())


def _in_turn(dealt: list[list[Any]]) -> list[Any]:
    """What the ranks took in turns, in one row again."""
    return [item for turn in zip_longest(*dealt, fillvalue=_NONE) for item in turn if item is not _NONE]


_NONE = object()
