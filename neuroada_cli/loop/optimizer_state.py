"""AdamW's state as named tensors: "<parameter number>.<Adam's name>", one entry for every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from neuroada_cli.ranks.group import ALONE, Ranks

STEP, MOMENTS = "step", ("exp_avg", "exp_avg_sq")


def tensors_of(
    optimizer: torch.optim.Optimizer, rows: Sequence[int] | None = None, ranks: Ranks = ALONE
) -> dict[str, Tensor]:
    """Of a parameter without a gradient yet (an expert that no token reached): the zeros it begins with.

    rows   of each parameter on all ranks together, where every rank steps its own: then all ranks call it,
           and rank 0 gets what is whole
    """
    found: dict[str, Tensor] = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        for key, value in (optimizer.state.get(parameter) or _fresh(parameter)).items():
            if rows is not None and key in MOMENTS:
                whole = ranks.joined(value.cpu(), rows[number])
                value = whole if ranks.first else whole[:0]
            found[f"{number}.{key}"] = value
    return found


def load(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    steps: int,
    rows: Sequence[int] | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Put a saved state back, of an optimizer that has done `steps` steps.

    rows, ranks  as of `tensors_of`: each rank takes its own part
    Raises ValueError unless there is exactly one entry for every parameter, of its shape and data type, with
    finite values: a missing one would start again at zero without a word, and a fused step trusts the shapes.
    """
    parameters = _parameters(optimizer)
    names = {f"{number}.{key}" for number in range(len(parameters)) for key in (STEP, *MOMENTS)}
    if odd := sorted(names ^ tensors.keys()):
        raise ValueError(f"the optimizer's state and the trained parameters differ in {odd[0]}")
    state = {}
    for number, parameter in enumerate(parameters):
        held = {key: tensors[f"{number}.{key}"] for key in (STEP, *MOMENTS)}
        if rows is not None:
            for key in MOMENTS:
                if held[key].ndim != 2 or len(held[key]) != rows[number]:
                    raise ValueError(f"the optimizer's state {number} is of another parameter")
                held[key] = held[key][ranks.rows(rows[number])]
        _check(held, parameter, number, steps)
        state[number] = held
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _fresh(parameter: nn.Parameter) -> dict[str, Tensor]:
    zeros = {key: torch.zeros_like(parameter, requires_grad=False) for key in MOMENTS}
    return {STEP: torch.zeros(()), **zeros}


def _check(held: Mapping[str, Tensor], parameter: nn.Parameter, number: int, steps: int) -> None:
    for key in MOMENTS:
        tensor = held[key]
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            raise ValueError(f"the optimizer's state {number} is of another parameter")
        if not bool(torch.isfinite(tensor).all()) or (key == MOMENTS[1] and bool((tensor < 0).any())):
            raise ValueError(f"the optimizer's state {number} holds what AdamW never writes")
    done = held[STEP]
    if done.shape != () or done.dtype != torch.float32 or float(done) not in range(steps + 1):
        raise ValueError(f"the optimizer's state {number} is not after {steps} steps")
