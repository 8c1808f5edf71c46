"""The story of a training run: step, evaluate, save, stop; and of one optimizer step.

Where a run stands is one number, the optimizer steps done: epoch, position in it, learning rate and what is
due next all follow from it. So an interrupted run goes on exactly where it was.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from neuroada_cli.data.batch import Batch, Encoded, Features, collate, epoch_order, pack, share_of, with_head
from neuroada_cli.data.stored import lengths_of
from neuroada_cli.delta.reselection import Choose
from neuroada_cli.errors import NumericsError, Stopped
from neuroada_cli.loop.frozen import FrozenWatch, weighted_sum
from neuroada_cli.loop.layerdrop import drop_alike, drops_layers
from neuroada_cli.loop.loss import LOSSES
from neuroada_cli.loop.modes import set_training
from neuroada_cli.loop.optim import OptimSettings, adamw, lr_factor
from neuroada_cli.loop.recomputing import enable_checkpointing
from neuroada_cli.loop.rng import seed_everything, seed_of
from neuroada_cli.loop.step import StepStats, train_step
from neuroada_cli.loop.unreached import refuse_unreached
from neuroada_cli.loop.validate import Evaluation, Metric, validate
from neuroada_cli.methods.protocol import Method, Reselects
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.stopping import Noted


@dataclass(frozen=True)
class Settings:
    """The recipe's `train` and `optim` sections and its seed, with the same meaning."""

    optim: OptimSettings
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 16
    micro_batch_size: int | None = None
    group_by_length: bool = True
    packing: bool = False
    share_prefix: bool = False
    reselect_every: int | None = None
    gradient_checkpointing: bool = False
    eval_every: int | None = None
    save_every: int | None = None
    early_stop: int | None = None
    seed: int = 42

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of the whole run over so many training rows."""
        steps = share_of(self.epochs, math.ceil(rows / self.batch_size))
        return steps if self.max_steps is None else min(steps, self.max_steps)


@dataclass(frozen=True)
class TrainData:
    """Encoded rows. kind is the task's; metric, where there is one, chooses the best checkpoint; features
    makes inputs of the rows' pictures.
    """

    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    kind: str
    pad_id: int
    metric: Metric | None = None
    features: Features | None = None


@dataclass
class Progress:
    """Where a run stands; all of it is in every checkpoint.

    step       optimizer steps done
    evaluated  the step of the last evaluation; saved: that of the last checkpoint
    best       the evaluation that `best` points to, at step best_step
    stale      evaluations since then
    """

    step: int = 0
    evaluated: int = 0
    saved: int = 0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0

    def judge(self, evaluation: Evaluation) -> bool:
        """Take note of an evaluation; True when it is the best so far."""
        self.evaluated = self.step
        if self.best is None or evaluation.better_than(self.best):
            self.best, self.best_step, self.stale = evaluation.value, self.step, 0
            return True
        self.stale += 1
        return False

    def hopeless(self, early_stop: int | None) -> bool:
        return early_stop is not None and self.stale >= early_stop


class Checkpoints(Protocol):
    def save(
        self, progress: Progress, model: nn.Module, method: Method, optimizer: torch.optim.Optimizer
    ) -> None: ...

    def restore(self, model: nn.Module, method: Method, optimizer: torch.optim.Optimizer) -> Progress:
        """The progress of the checkpoint to go on from, everything else put back; a fresh one without it."""
        ...


class Reporter(Protocol):
    def step(self, stats: StepStats, total: int) -> None: ...
    def evaluation(self, step: int, evaluation: Evaluation, is_best: bool) -> None: ...


def train(
    model: nn.Module,
    method: Method,
    data: TrainData,
    settings: Settings,
    checkpoints: Checkpoints,
    report: Reporter,
    indices: dict[str, Tensor],
    choose: Choose | None = None,
    ranks: Ranks = ALONE,
    wanted: Mapping[str, Collection[str]] | None = None,
) -> Progress:
    """Train `model`, to which `method` is attached, to the end of the run.

    indices  module name -> [O, K]: what may change in otherwise frozen weights (looked at after the first
             step and at every save, entry by entry at the end)
    choose   weight -> what trains of it, for `settings.reselect_every` (of a method that reselects)
    ranks    the processes that train together: each with the same arguments, and the same result
    wanted   entry of `select.targets` -> its layers: one of which no layer gets a gradient is an error
    Raises Stopped after a signal (a checkpoint is written first), NumericsError (nothing is written, the last
    checkpoint stays good), DataError for a step without any target; what torch raises when memory runs out.
    """
    seed_everything(seed_of(settings.seed, ranks.number))
    optimizer = adamw(model, method, settings.optim)
    watch = FrozenWatch(model, indices)
    progress = checkpoints.restore(model, method, optimizer)
    if settings.gradient_checkpointing:
        enable_checkpointing(model)
    set_training(model)
    chance = drops_layers(model)  # then a layer without a gradient, or all of them, tell nothing
    if chance and ranks.sharded:
        drop_alike(model, ranks)
    schedule = Schedule(data, settings, ranks.size)
    begun = progress.step
    with Noted() as stop:
        while True:
            improved = False
            if data.validation and schedule.due(progress.step, progress.evaluated, settings.eval_every):
                batches = schedule.validation()
                evaluation = validate(model, batches, data.kind, data.metric, stop, progress.step, ranks)
                if evaluation is not None:  # None: a signal came first, and resuming evaluates anew
                    improved = progress.judge(evaluation)
                    report.evaluation(progress.step, evaluation, improved)
            finished = progress.step >= schedule.total or progress.hopeless(settings.early_stop)
            if finished and progress.step > begun:
                watch.check_all()
            # a signal to any rank stops all of them here, and one that comes later at the next step
            stopping = ranks.largest(stop.requested or 0)
            leaving = finished or stopping > 0
            due = schedule.due(progress.step, progress.saved, settings.save_every)
            if due or improved or (leaving and progress.saved < progress.step):
                watch.check()
                _refuse_apart(model, method, ranks)
                progress.saved = progress.step
                checkpoints.save(progress, model, method, optimizer)
            if stopping:
                raise _stopped(stopping, progress.step, schedule.total)
            if finished:
                return progress
            stats = train_step(
                model, method, optimizer, schedule.micro_batches(progress.step), LOSSES[data.kind],
                progress.step, schedule.lr_factor(progress.step),
                weight_decay=settings.optim.weight_decay, clip=settings.optim.clip, ranks=ranks,
                look=progress.step == begun and not chance, learns=not chance,
            )  # fmt: skip
            if stats.unreached is not None:
                refuse_unreached(stats.unreached, wanted or {})
            progress.step += 1
            report.step(stats, schedule.total)
            if progress.step == begun + 1:
                watch.check()
            every = settings.reselect_every
            due = every is not None and progress.step % every == 0 and progress.step < schedule.total
            if due and choose and isinstance(method, Reselects):
                watch.check_all()
                watch = FrozenWatch(model, method.reselect(model, choose, optimizer))


def _refuse_apart(model: nn.Module, method: Method, ranks: Ranks) -> None:
    """Raises NumericsError unless every rank has learnt the same, bit for bit."""
    if ranks.alone or ranks.sharded:
        return
    parameters = [*method.parameters(model), *method.whole_parameters()]
    sums = ranks.collected([weighted_sum(parameter.detach()) for parameter in parameters])
    if odd := [number for number, theirs in enumerate(sums) if theirs != sums[0]]:
        raise NumericsError(
            f"process {odd[0]} has learnt something else than process 0; no checkpoint of this step was "
            "written",
            fix="run on machines of one kind; if they are, report this as a bug",
        )


class Schedule:
    """What happens at which step: a pure function of the rows, the settings and the step.

    workers  processes that take turns at the micro-batches: a step is cut so that each gets one, if it can
    """

    def __init__(self, data: TrainData, settings: Settings, workers: int = 1) -> None:
        self._data, self._settings, self._workers = data, settings, workers
        self._lengths = lengths_of(data.train)
        self.per_epoch = math.ceil(len(data.train) / settings.batch_size)
        self.total = settings.total_steps(len(data.train))
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def micro_batches(self, step: int) -> list[Batch]:
        """The batches of optimizer step `step` (0 is the first)."""
        return [self._batch(rows) for rows in self.micro_rows(step)]

    def micro_rows(self, step: int) -> list[list[Encoded]]:
        """The rows of each of those batches."""
        epoch, position = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            s = self._settings
            self._epoch = epoch, epoch_order(self._lengths, s.batch_size, s.seed, epoch, s.group_by_length)
        rows = [self._data.train[i] for i in self._epoch[1][position]]
        size = self._size(len(rows))
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _size(self, count: int) -> int:
        """Rows of a micro-batch, where so many rows are shared by all processes."""
        return min(self._settings.micro_batch_size or count, -(-count // self._workers))

    def validation(self) -> Iterator[Batch]:
        """Micro-batches of similar length, the longest first: what does not fit fails at once."""
        rows, lengths = self._data.validation, lengths_of(self._data.validation)
        order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
        size = self._size(min(self._settings.batch_size, len(rows) or 1))
        for start in range(0, len(rows), size):
            yield self._batch([rows[at] for at in order[start : start + size]])

    def _batch(self, rows: Sequence[Encoded]) -> Batch:
        if self._settings.packing:
            return pack(rows)
        batch = collate(rows, self._data.pad_id, self._data.features)
        return with_head(batch) if self._settings.share_prefix else batch

    def lr_factor(self, step: int) -> float:
        optim = self._settings.optim
        return lr_factor(step, self.total, optim.schedule, optim.warmup_ratio, optim.warmup_steps)

    def due(self, step: int, done: int, every: int | None) -> bool:
        """At every multiple of `every` (an epoch without it) and at the end, unless it was done already."""
        return step > done and (step % (every or self.per_epoch) == 0 or step == self.total)


def _stopped(number: int, step: int, total: int) -> Stopped:
    name = signal.Signals(number).name
    return Stopped(
        number, f"stopped by {name} after step {step} of {total}, everything saved", "go on with --resume"
    )
