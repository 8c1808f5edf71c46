"""How long a run will take, from steps that this machine really makes: a model of a few blocks with random
weights, the recipe's method, loss and optimizer. No weight is read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuroada_cli import memory
from neuroada_cli.data.batch import Batch, Encoded, collate
from neuroada_cli.data.stored import lengths_of
from neuroada_cli.delta.targets import target_of
from neuroada_cli.errors import UserError
from neuroada_cli.hub.known import known
from neuroada_cli.loop.loss import LOSSES
from neuroada_cli.loop.modes import set_training
from neuroada_cli.loop.optim import adamw
from neuroada_cli.loop.recomputing import enable_checkpointing
from neuroada_cli.loop.step import train_step
from neuroada_cli.machine import narrow_products
from neuroada_cli.machine.processor import cpu_name
from neuroada_cli.memory.depth import Stack, alike_blocks
from neuroada_cli.ranks.group import ALONE
from neuroada_cli.training.parallel import memory_of
from neuroada_cli.training.plan import as_asked, kept_per_neuron
from neuroada_cli.training.preflight import Checked
from neuroada_cli.training.settings import dtype_of, loop_settings

TRIED = (1, 3)  # blocks of the models that step; the others follow from their difference
MOST_PRODUCTS = {"cpu": 2e11, "cuda": 2e13}  # multiplications of one step, so that a dry run stays short
SPREAD = 0.02  # of random weights
REPEATS = 2
KEPT = timedelta(days=1)


@dataclass(frozen=True)
class Pace:
    """seconds of the whole training, without evaluations and saving; tokens per second, of real ones; when
    they were timed, if not just now.
    """

    seconds: float
    tokens_per_s: float
    when: datetime | None = None


def pace(checked: Checked) -> Pace | str:
    """The time of all steps; or why it is not estimated. What was timed within a day is not timed again."""
    recipe, plan = checked.recipe, checked.plan
    if recipe.model.quantization is not None:
        return "a base in " + recipe.model.quantization + " is not timed before it is loaded"
    if not plan.facts.chosen and not plan.facts.predictable:
        return f"the steps of {recipe.train.method} are not timed before it is loaded"
    if checked.task.pictures:
        return "what pictures take is known from their values"
    kept = kept_per_neuron(recipe, plan)
    counts = {name: kept if isinstance(kept, int) else kept[name] for name in plan.sizes.shapes}
    about, now = as_asked(recipe, checked.base, plan), datetime.now()

    def time_it() -> _Timed | str:
        found = _per_token(checked, counts)
        return found if isinstance(found, str) else _Timed(found, now)

    if about is None:
        timed = time_it()
    else:
        about += [counts, *_timed_by(checked)]
        told_by = [checked.base.folder / "config.json"]
        timed = known("paces", told_by, about, time_it, _as_record, partial(_as_timed, now=now))
    if isinstance(timed, str):
        return timed
    when = timed.when if timed.when != now else None
    return Pace(timed.per_token * _tokens(checked), 1 / timed.per_token, when)


class _Timed(NamedTuple):
    """Seconds of a step per token, and when they were found."""

    per_token: float
    when: datetime


def _as_record(timed: _Timed | str) -> dict[str, Any] | None:
    return None if isinstance(timed, str) else {"seconds": timed.per_token, "when": timed.when.isoformat()}


def _as_timed(record: Any, now: datetime) -> _Timed:
    """Raises LookupError for a time that is too old: the machine may do other things by now."""
    timed = _Timed(float(record["seconds"]), datetime.fromisoformat(record["when"]))
    if not timedelta(0) <= now - timed.when < KEPT or not timed.per_token > 0:
        raise LookupError("too old")
    return timed


def _timed_by(checked: Checked) -> list[Any]:
    """What a step's time follows from beside the model and the method."""
    recipe, report, device = checked.recipe, checked.rows.train_report, checked.device
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()
    train, lengths = recipe.train, [len(row) for row in _middle(checked)]
    settings = [train.gradient_checkpointing, train.delta_dtype, recipe.model.dtype, recipe.optim.clip]
    peer = recipe.peer.model_dump() if recipe.peer else None
    return [where, torch.get_num_threads(), *settings, peer, lengths, report.targets, report.tokens]


def _per_token(checked: Checked, counts: dict[str, int]) -> float | str:
    """Seconds of a step, per token; or why it is not known."""
    stack = alike_blocks(checked.base.skeleton, counts, ())
    sizes = TRIED if stack is not None else (0,)
    try:
        timed = [_seconds(checked, stack, blocks, counts) for blocks in sizes]
    except UserError:
        raise
    except Exception as error:  # the model's own code, on numbers that mean nothing
        return " ".join(f"its steps cannot be tried ({type(error).__name__}: {error})".split())[:160]
    if isinstance(why := next((each for each in timed if isinstance(each, str)), ""), str) and why:
        return why
    first, *more = [each for each in timed if not isinstance(each, str)]
    if stack is None or not more:
        return first
    block = max(0.0, (more[0] - first) / (TRIED[1] - TRIED[0]))
    return first + (len(stack.blocks) - TRIED[0]) * block


def _tokens(checked: Checked) -> float:
    """Of the whole run, from the mean row."""
    counts, recipe = checked.rows.train_report, checked.recipe
    steps = loop_settings(recipe).total_steps(len(checked.rows.data.train))
    per_epoch = -(-counts.rows // recipe.train.batch_size)
    return counts.tokens * steps / per_epoch


def _seconds(checked: Checked, stack: Stack | None, blocks: int, counts: dict[str, int]) -> float | str:
    """Of a step, per token, of a model with so many blocks (without a stack: the whole one)."""
    skeleton, device = checked.base.skeleton, checked.device
    dtype = dtype_of(checked.recipe)
    narrow_products.prepare(device, dtype)
    if stack is None:
        size, names = _bytes(skeleton, dtype), list(counts)
        if 2 * size > memory_of(device, ALONE):
            return "no part of this model tells the time of all of it"
        model = _copied(skeleton, dtype, device)
    else:
        with stack.cut(blocks) as names:
            if 2 * _bytes(skeleton, dtype) > memory_of(device, ALONE):
                return "a few blocks of this model are more than this machine has room for"
            model = _copied(skeleton, dtype, device)
    method = checked.plan.facts.build(
        checked.recipe.peer.model_dump() if checked.recipe.peer else None,
        checked.recipe.seed,
        checked.recipe.train.delta_dtype,
        False,
    )
    indices = {name: _chosen(model, name, counts[name]).to(device) for name in names}
    if checked.recipe.train.gradient_checkpointing:
        enable_checkpointing(model)
    method.attach(model, indices)
    set_training(model)
    optimizer = adamw(model, method, loop_settings(checked.recipe).optim)
    batch = _batch(checked, sum(p.numel() for p in model.parameters())).to(torch.device(device))
    best = float("inf")
    for _ in range(1 + REPEATS):  # the first one compiles, allocates and warms up
        _wait(device)
        started = time.perf_counter()
        train_step(model, method, optimizer, [batch], LOSSES[checked.rows.data.kind], step=0, learns=False)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return best / batch.tokens


def _batch(checked: Checked, parameters: int) -> Batch:
    """Rows of middle length, at most a micro-batch, and fewer where a step would take long."""
    most = MOST_PRODUCTS.get(checked.device.partition(":")[0], MOST_PRODUCTS["cpu"]) / (4 * parameters)
    middle = _middle(checked)
    kept = middle[:1]
    for row in middle[1:]:
        if sum(map(len, kept)) + len(row) > most:
            break
        kept.append(row)
    return collate(kept, checked.rows.data.pad_id, checked.rows.data.features)


def _middle(checked: Checked) -> list[Encoded]:
    """The rows of middle length, as many as a micro-batch has."""
    recipe, rows = checked.recipe.train, checked.rows.data.train
    lengths = lengths_of(rows)
    ordered = sorted(range(len(rows)), key=lengths.__getitem__)
    size = min(recipe.micro_batch_size or recipe.batch_size, len(rows))
    return [rows[at] for at in ordered[max(0, (len(rows) - size) // 2) :][:size]]


def _bytes(model: nn.Module, dtype: torch.dtype) -> int:
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def _copied(skeleton: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """The module graph with random weights: of zeros and tiny numbers a processor makes slow ones."""

    def made(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
        kind = dtype if isinstance(tensor, nn.Parameter) else tensor.dtype
        return torch.empty(tensor.shape, dtype=kind, device=device).normal_(std=SPREAD)

    with torch.random.fork_rng(devices=[]):
        return memory.copy_structure(skeleton, made)


def _chosen(model: nn.Module, name: str, count: int) -> Tensor:
    """index[O, K] somewhere in every row."""
    outputs, inputs = target_of(model, name).shape
    kept = min(count, inputs)
    start_O = torch.arange(outputs) % max(1, inputs - kept + 1)
    return (start_O[:, None] + torch.arange(kept)).to(torch.int32)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
