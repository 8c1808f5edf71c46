"""One optimizer step, from micro-batches to refolded weights."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroada_cli.data.batch import Batch, listed
from neuroada_cli.errors import DataError, NumericsError
from neuroada_cli.loop.loss import Loss, count_targets
from neuroada_cli.loop.numerics import not_numbers
from neuroada_cli.loop.optim import clip_gradients, scale_gradients, set_lr
from neuroada_cli.loop.turns import turns
from neuroada_cli.loop.unreached import Unreached, unreached
from neuroada_cli.methods.protocol import Fuses, Method, Shards
from neuroada_cli.ranks.gradients import sum_gradients
from neuroada_cli.ranks.group import ALONE, Ranks

# What a loss of fp16 is divided by in the backward pass at most. A token's own gradients fit fp16 as they
# are; divided by the thousands of targets of a step they fall below its smallest numbers (6e-8). 8 leaves
# room for large ones: they overflow from half a million on.
FP16_DIVISOR = 8


@dataclass(frozen=True)
class StepStats:
    """loss is the mean over the step's targets before the update, grad_norm is before clipping, lr is the
    deltas', tokens counts everything but padding, seconds is the whole step. row_numbers are the data's own;
    unreached is what got no gradient, where that was looked for.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    targets: int
    tokens: int
    rows: int
    seconds: float
    row_numbers: tuple[int, ...] = ()
    unreached: Unreached | None = None


def train_step(
    model: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    loss: Loss,
    step: int,
    factor: float = 1.0,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    ranks: Ranks = ALONE,
    look: bool = False,
    learns: bool = True,
) -> StepStats:
    """loss = sum over all micro-batches / their target count, then clip, update, refold.

    micro_batches  of the whole step, on any device; each is moved to the model's when its turn comes
    step           number of this step (0 is the first), for messages and the result
    factor         share of the peak learning rate
    ranks          take turns at the micro-batches; all divide by the same count
    look           for what gets no gradient
    learns         False where nothing may (a floor for measurements, layers left out at random): gradients
                   may all be zero
    A mean of per-micro-batch means would weigh tokens by the company they keep; this does not.
    A model in fp16 goes backward from a larger loss, so that no gradient gets lost on the way; gradients are
    divided by the rest where they are fp32.
    Raises DataError without a single target; NumericsError, before anything is updated, for a loss or
    gradient that is not finite, and where every gradient is zero though there is a loss.
    """
    started = time.perf_counter()
    targets = sum(count_targets(batch.labels_BS) for batch in micro_batches)
    tokens = sum(batch.tokens for batch in micro_batches)
    rows = [row for batch in micro_batches for row in batch.rows]
    if not targets:
        raise DataError(f"step {step + 1} has no token to learn", f"rows {listed(rows)}")
    device = next(model.parameters()).device
    scale = _loss_scale(model, targets)
    losses: list[Tensor] = []
    for turn in turns(micro_batches, ranks):
        loss_sum, _ = loss(model, turn.batch.to(device))
        if not turn.counts:
            loss_sum = loss_sum * 0.0
        if loss_sum.requires_grad:  # a micro-batch may hold no target at all
            (loss_sum / (targets / scale)).backward()  # type: ignore[no-untyped-call]
        if turn.own:
            losses.append(loss_sum.detach())
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if isinstance(method, Shards):
        method.take_gradients(model)
    else:
        sum_gradients(parameters, ranks)
    grads = [p.grad for p in parameters if p.grad is not None]
    if scale > 1.0 and grads:
        torch._foreach_mul_(grads, 1.0 / scale)
    fused = None
    if isinstance(method, Fuses) and isinstance(optimizer, torch.optim.AdamW):
        fused = method.fused_step(optimizer)
    norm = clip_gradients(parameters, clip if fused is None else None, ranks)
    # the step's only wait for the device: everything the guard and the log need at once
    *sums, grad_norm = _told([*losses, norm.float()], len(micro_batches), ranks)
    _guard(model, sums, grad_norm, micro_batches, step, learns)
    missed = unreached(model, parameters) if look else None

    set_lr(optimizer, factor)
    lr = optimizer.param_groups[0]["lr"]
    method.before_step(model, decay=lr * weight_decay)
    if fused is not None:
        fused(norm, clip)
        scale_gradients(parameters, clip, norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.after_step(model)
    seconds = time.perf_counter() - started
    mean = sum(sums) / targets
    return StepStats(step + 1, mean, grad_norm, lr, targets, tokens, len(rows), seconds, tuple(rows), missed)


def _loss_scale(model: nn.Module, targets: int) -> float:
    """A power of two, so that to multiply and divide by it rounds nothing. 1 where it would not help, or a
    gradient that is itself fp16 (of a head that trains whole, say) would have to hold the sum of all tokens.
    """
    if next(model.parameters()).dtype is not torch.float16:
        return 1.0
    if any(weight.requires_grad and weight.dtype is torch.float16 for weight in model.parameters()):
        return 1.0
    return 2.0 ** max(0, math.floor(math.log2(targets / FP16_DIVISOR)))


def _told(own: Sequence[Tensor], count: int, ranks: Ranks) -> list[float]:
    """The step's `count` losses, in the micro-batches' order, and its gradient norm: numbers, on every rank.

    own  this rank's losses, and the norm, which is the same on all
    """
    if ranks.alone:
        return list(torch.stack(list(own)).tolist())
    *losses, norm = own
    every = torch.zeros(count, dtype=torch.float32, device=norm.device)
    if losses:
        every[ranks.number :: ranks.size] = torch.stack(losses)
    ranks.sum_(every)
    return list(torch.cat([every, norm[None]]).tolist())


def _guard(
    model: nn.Module,
    sums: list[float],
    grad_norm: float,
    micro_batches: Sequence[Batch],
    step: int,
    learns: bool,
) -> None:
    """Raises NumericsError naming the step and the rows that cannot be trained on, or the weight at fault."""
    bad = [
        row
        for value, b in zip(sums, micro_batches, strict=True)
        if not math.isfinite(value)
        for row in b.rows
    ]
    fix = "lower optim.lr, look at these rows, or set model.dtype: fp32"
    if bad:
        said = f"the loss is not finite at step {step + 1}, rows {listed(bad)}"
        raise not_numbers(model, said, fix, begun=step > 0)
    if not math.isfinite(grad_norm):
        rows = [row for batch in micro_batches for row in batch.rows]
        said = f"the gradient is not finite at step {step + 1}, rows {listed(rows)}"
        raise not_numbers(model, said, fix, begun=step > 0)
    if learns and grad_norm == 0.0 and any(sums):  # of a loss of 0 nothing is left to learn
        first = "check select.targets, and that the answers in the data differ from the prompt"
        later = "look at what happened before it: an evaluation, a lost precision (set model.dtype: fp32)"
        raise NumericsError(
            f"all gradients are zero at step {step + 1}, so nothing would train",
            fix=later if step else first,
        )
