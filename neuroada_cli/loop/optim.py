"""AdamW in two groups, the learning rate as a function of the step, and the gradient norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroada_cli.data.batch import share_of
from neuroada_cli.methods.protocol import Method
from neuroada_cli.ranks.group import ALONE, Ranks

PIECE = 1 << 18  # numbers; the norm of so many is right to 1 in 20,000, whatever they are


@dataclass(frozen=True)
class OptimSettings:
    """The fields of the recipe's `optim` section, with the same meaning."""

    lr: float
    head_lr: float | None = None
    schedule: str = "linear"
    warmup_ratio: float = 0.0
    warmup_steps: int | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = 1.0


def adamw(model: nn.Module, method: Method, settings: OptimSettings) -> torch.optim.AdamW:
    """AdamW over the method's parameters (decayed) and the ones that train whole (`head_lr`, no decay).

    `initial_lr` of each group is its peak; `set_lr` derives the rest from it. Fused: one pass over all state,
    on CPU and CUDA alike.
    """
    decay = 0.0 if method.own_decay else settings.weight_decay
    head_lr = settings.head_lr or settings.lr
    groups = [
        {"params": method.parameters(model), "initial_lr": settings.lr, "weight_decay": decay},
        {"params": method.whole_parameters(), "initial_lr": head_lr, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def lr_factor(
    step: int, total: int, schedule: str, warmup_ratio: float, warmup_steps: int | None = None
) -> float:
    """Share of the peak learning rate at optimizer step `step` (0 is the first) of `total`.

    A pure function, so resuming needs no scheduler state. `warmup_steps`, without them the share
    `warmup_ratio` of all, rise linearly; the first is not wasted on a rate of 0, as it is in transformers'
    schedules, otherwise the curves are theirs: linear and cosine would reach 0 one step after the last.
    """
    warmup = share_of(warmup_ratio, total) if warmup_steps is None else warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return SCHEDULES[schedule](progress)


# progress 0..1 after the warmup -> share of the peak
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float | None, ranks: Ranks = ALONE) -> Tensor:
    """The 2-norm over all gradients before clipping (a scalar); scales them down to `limit`.

    ranks  whose gradients of their own rows count, too, where each holds some
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([piece for grad in grads for piece in _pieces(grad)])
    if ranks.sharded:
        square = norm.square()
        ranks.sum_(square)
        norm = square.sqrt()
    scale_gradients(parameters, limit, norm)
    return norm


def _pieces(grad: Tensor) -> Sequence[Tensor]:
    """A gradient in parts short enough for their norms. On the CPU a norm is added up in fp32 from end to
    end, so that a large one comes out too small: an embedding's of 2.6e8 numbers by 4 to 12 %
    (findings/norm-of-many-numbers.sh).
    """
    if grad.device.type != "cpu" or grad.numel() <= PIECE:
        return [grad]
    return torch.split(grad.flatten(), PIECE)


def scale_gradients(parameters: Sequence[nn.Parameter], limit: float | None, norm: Tensor) -> None:
    """Scale the gradients that there are, so that a norm of all of them is at most `limit`."""
    if limit is not None and any(parameter.grad is not None for parameter in parameters):
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
