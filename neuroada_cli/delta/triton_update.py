"""Clip, AdamW and refold of all layers in one launch on CUDA, where each alone is several for every layer.

O = output neurons, K = chosen inputs per neuron

    g = gradient * min(1, limit / norm);  m, v, delta as torch.optim.AdamW has them;  W = round(base + delta)

A table on the device says where each layer's tensors lie. The optimizer's state is AdamW's own, under its own
names, so that a checkpoint does not tell which of the two wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neuroada_cli.delta.native import Fold
from neuroada_cli.delta.triton_grad import available

# of a row of the table; addresses first
COLUMNS = (
    "weight", "index", "base", "delta", "grad", "first", "second", "steps",
    "numbers", "k", "outputs", "matrix", "row", "column", "group",
)  # fmt: skip
# of a group: 1 - beta and log(beta) of both moments; limit of the norm
SETTINGS = ("lr", "left_1", "left_2", "log_1", "log_2", "eps", "weight_decay", "limit")
BLOCK, WARPS = 1024, 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = (1 << 31) - BLOCK  # numbers of one layer, which are counted in 32 bits


def fits(job: Fold) -> bool:
    """Whether the kernel takes this layer: plain tensors on CUDA, fp32 deltas, all of it contiguous."""
    weight, index_OK, base_OK, delta_OK, _ = job
    return (
        type(index_OK) is Tensor  # fake and distributed tensors are of other classes, and have no memory here
        and available(weight.device)
        and weight.dtype in DTYPES
        and base_OK.dtype == weight.dtype
        and index_OK.dtype == torch.int32
        and delta_OK is not None
        and delta_OK.dtype == torch.float32
        and 0 < delta_OK.numel() < LARGEST
        and all(tensor.is_contiguous() for tensor in (weight, index_OK, base_OK, delta_OK))
        and all(tensor.device == weight.device for tensor in (index_OK, base_OK, delta_OK))
    )


def fold(jobs: Sequence[Fold]) -> None:
    """W[o, index_ok] = round(base_ok + delta_ok) in place, for each of the jobs. Ask `fits` first."""
    _launch([(job, _row(job)) for job in jobs], None, None, False)


Update = Callable[[Tensor, "float | None"], None]


@torch.no_grad()
def prepared(optimizer: torch.optim.AdamW, jobs: Sequence[Fold]) -> Update | None:
    """What makes the optimizer's step for these deltas and folds them in; None where the kernel cannot.

    Its arguments: the norm of all gradients (a scalar on the device), and the limit to clip to. A delta
    without a gradient stays as it is; the others' gradients are gone afterwards, so that the optimizer's own
    step leaves them alone. Prepared before the step's wait for the device, it needs none.
    """
    folds = {id(job[3]): job for job in jobs}
    work: list[tuple[Fold, list[int]]] = []
    steps: list[Tensor] = []
    parameters: list[Tensor] = []
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            job = folds.get(id(parameter))
            if job is None or parameter.grad is None:
                continue
            if not fits(job) or group["amsgrad"] or group["maximize"]:
                return None
            state = _state(optimizer, parameter)
            moments = (parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["step"])
            if not all(map(_plain, moments)) or len({parameter.device, *(m.device for m in moments)}) > 1:
                return None
            work.append((job, _row(job, moments, number)))
            steps.append(state["step"])
            parameters.append(parameter)
    if len({parameter.device for parameter in parameters}) != 1:
        return None

    def update(norm: Tensor, limit: float | None) -> None:
        torch._foreach_add_(steps, 1)
        rows = [_settings(group, limit) for group in optimizer.param_groups]
        settings = _on_device(torch.tensor(rows, dtype=torch.float64), norm.device)
        _launch(work, settings, norm.float(), limit is not None)
        for parameter in parameters:
            parameter.grad = None

    return update


def _plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_contiguous()


def _state(optimizer: torch.optim.AdamW, parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's own of a parameter, begun as it begins it."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


def _settings(group: dict[str, Any], limit: float | None) -> list[float]:
    beta_1, beta_2 = group["betas"]
    logs = [math.log(beta) if beta else -math.inf for beta in (beta_1, beta_2)]
    return [group["lr"], 1 - beta_1, 1 - beta_2, *logs, group["eps"], group["weight_decay"], limit or 0.0]


def _row(job: Fold, moments: Sequence[Tensor] = (), group: int = 0) -> list[int]:
    """A line of the table. moments: gradient, first and second moment, steps taken."""
    weight, index_OK, base_OK, delta_OK, layout = job
    assert delta_OK is not None
    row, column = (1, layout.outputs) if layout.transposed else (layout.inputs, 1)
    tensors = (weight, index_OK, base_OK, delta_OK, *moments)
    addresses = [tensor.data_ptr() for tensor in tensors] + [0] * (8 - len(tensors))
    sizes = [delta_OK.numel(), delta_OK.shape[1], layout.outputs, layout.outputs * layout.inputs, row, column]
    return [*addresses, *sizes, group]


def _launch(
    work: Sequence[tuple[Fold, list[int]]], settings: Tensor | None, norm: Tensor | None, clips: bool
) -> None:
    """One launch for every data type of weights, and device."""
    from neuroada_cli.delta import triton_kernels

    for dtype, device in dict.fromkeys((job[0].dtype, job[0].device) for job, _ in work):
        here = [(job[0], row) for job, row in work if (job[0].dtype, job[0].device) == (dtype, device)]
        weights, rows = [weight for weight, _ in here], [row for _, row in here]
        table = _on_device(torch.tensor(rows, dtype=torch.int64), device)
        chunks = -(-max(row[COLUMNS.index("numbers")] for row in rows) // BLOCK)
        triton_kernels.update_kernel[(chunks, len(rows))](
            table, table if settings is None else settings, table if norm is None else norm, len(rows),
            UPDATES=settings is not None, CLIPS=clips, WEIGHT=triton_kernels.TYPES[dtype], BLOCK=BLOCK,
            num_warps=WARPS,
        )  # fmt: skip
        # what a backward pass saved before is known to be out of date by its version
        torch.autograd.graph.increment_version(weights)


def _on_device(table: Tensor, device: torch.device) -> Tensor:
    """A copy that nothing waits for."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table
