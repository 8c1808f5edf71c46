"""Which parameters are one: read off the files, since a config that says so may be wrong.

A checkpoint whose config ties its head to its embedding may hold a head of its own, as fine-tuned ones do.
transformers then loads the two apart, and so they are here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from neuroada_cli.hub.places import Places
from neuroada_cli.hub.weights import Weights

CHUNK = 1 << 20  # numbers compared at a time: tensors that differ do so early


def held_apart(graph: nn.Module, places: Places, weights: Weights) -> list[str]:
    """The parameters that the config ties to another one, but that the files hold in other numbers."""
    found = []
    for names, parameter in _shared(graph):
        alike = [name for name in weights if weights.info(name).shape == tuple(parameter.shape)]
        if len(alike) < 2:  # the files cannot hold both
            continue
        held = [(name, stored) for name in names if (stored := places.own_name(name)) is not None]
        found += [name for name, stored in held[1:] if not _same(weights, held[0][1], stored)]
    return found


def untie(model: nn.Module, names: Iterable[str]) -> None:
    """Give these parameters of a model on the meta device one of their own."""
    for name in names:
        owner, _, own = name.rpartition(".")
        made = nn.Parameter(torch.empty_like(model.get_parameter(name)))
        model.get_submodule(owner).register_parameter(own, made)


def _shared(model: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    names: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), ([], parameter))[0].append(name)
    return [entry for entry in names.values() if len(entry[0]) > 1]


def _same(weights: Weights, one: str, other: str) -> bool:
    if one == other:
        return True
    first, second = weights.tensor(one).view(-1), weights.tensor(other).view(-1)
    parts = range(0, len(first), CHUNK)
    return all(torch.equal(first[at : at + CHUNK], second[at : at + CHUNK]) for at in parts)
