"""Choosing anew while training: what was learnt stays, what trains changes.

By the weights alone, as they have become: LIFT's way (arXiv:2506.00772). SpIEL's (arXiv:2401.16405) drops
connections and grows others by gradients of weights that do not train; no step computes those here, so it is
not offered.

O = output neurons, K = connections that train per neuron, U = connections that hold a delta, I = inputs
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from neuroada_cli.delta.model import delta_layers

MATCH_ELEMENTS = 1 << 22
Choose = Callable[[Tensor], Tensor]  # weight [O, I] as it is now -> int32 [O, K], ascending


def union(index_OK: Tensor, delta_OK: Tensor, chosen_OK: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """(index int32 [O, U], which of it trains: bool [O, U]) after a new choice.

    index, delta  what holds a delta so far (an entry whose delta is 0 has earned nothing and goes)
    chosen        what trains from now on
    Rows are ascending; a shorter one ends in -1.
    """
    earned_OK = (delta_OK != 0) & ~_found(index_OK, chosen_OK)
    none = inputs  # sorts behind every column
    all_OU = torch.cat([chosen_OK, index_OK.masked_fill(~earned_OK, none)], dim=1).sort(dim=1).values
    longest = chosen_OK.shape[1] + int(earned_OK.sum(dim=1).max())
    index_OU = all_OU[:, :longest]
    index_OU = index_OU.masked_fill(index_OU == none, -1)
    return index_OU, _found(index_OU, chosen_OK)


def places(index_OK: Tensor, index_OU: Tensor) -> Tensor:
    """int64 [O, U]: where each column of the second index stands in the same row of the first, else -1."""
    found_OU = torch.empty(index_OU.shape, dtype=torch.int64, device=index_OU.device)
    rows = max(1, MATCH_ELEMENTS // (index_OK.shape[1] * index_OU.shape[1]))
    for start in range(0, len(index_OU), rows):
        part = slice(start, start + rows)
        same = index_OU[part, :, None] == index_OK[part, None, :]
        found_OU[part] = torch.where(same.any(dim=2), same.int().argmax(dim=2), -1)
    return found_OU


def _found(index_OU: Tensor, chosen_OK: Tensor) -> Tensor:
    return places(chosen_OK, index_OU) >= 0


@torch.no_grad()
def reselect(
    model: nn.Module, choose: Choose, optimizer: torch.optim.Optimizer
) -> dict[str, tuple[Tensor, Tensor]]:
    """Every layer trains what `choose` takes of its weights as they are now; nothing else changes.

    Deltas of connections that are dropped stay in the weights and rest: no gradient, no optimizer state. A
    connection that trains before and after keeps its optimizer state; a new one starts at 0 with none.
    Returns layer name -> (index int32 [O, U] ending in -1, which of it trains: bool [O, U]).
    """
    found = {}
    for name, layer in delta_layers(model).items():
        old_index_OK, old = layer.index, layer.delta
        matrices = layer.layout.matrices(layer.weight.detach())
        chosen_OK = torch.cat([choose(weight_OI.contiguous()) for _, weight_OI in matrices]).to(old_index_OK)
        index_OU, trains_OU = union(old_index_OK, old.data, chosen_OK, layer.layout.inputs)
        layer.reindex(index_OU, trains_OU)
        place_OU = places(old_index_OK, layer.index)
        kept_OU, from_OU = place_OU >= 0, place_OU.clamp(min=0)
        # a new parameter, not new data in the old one: autograd may remember the old one's shape
        layer.delta = nn.Parameter(old.data.gather(1, from_OU) * kept_OU)
        _take_place(optimizer, old, layer.delta, from_OU, kept_OU & trains_OU)
        found[name] = index_OU, trains_OU
    return found


def _take_place(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, from_OU: Tensor, keeps_OU: Tensor
) -> None:
    """The optimizer steps `new` instead of `old`; what it held per entry moves along, where it `keeps`."""
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    if old in optimizer.state:
        held = optimizer.state.pop(old)
        optimizer.state[new] = {
            key: value.gather(1, from_OU) * keeps_OU if value.shape == old.shape else value
            for key, value in held.items()
        }
