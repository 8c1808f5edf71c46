"""The watch over frozen weights: samples taken before training must be bit-equal ever after.

O = output neurons, K = chosen inputs per neuron, N = sampled entries
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroada_cli.delta.linear import DeltaLayer, is_conv1d
from neuroada_cli.errors import NumericsError

SAMPLES = 256  # entries per tensor: whatever writes to a frozen tensor by mistake writes to all of it


@dataclass(frozen=True)
class _Sample:
    name: str
    tensor: Tensor
    place: tuple[Tensor, ...]  # one N-long index per dimension
    values: Tensor


class FrozenWatch:
    """Evenly spaced entries of every tensor that must not change.

    indices  module name -> int [O, K]: the only entries of that module's weight that may change
    Every other parameter is watched if it asks for no gradient. Take it after `attach`.
    """

    def __init__(self, model: nn.Module, indices: Mapping[str, Tensor]) -> None:
        targets = {id(model.get_submodule(name).weight): (name, index) for name, index in indices.items()}
        self._samples: list[_Sample] = []
        for name, parameter in model.named_parameters():
            if id(parameter) in targets:
                module, index_OK = targets[id(parameter)]
                place = _frozen_entries(parameter, model.get_submodule(module), index_OK)
            elif not parameter.requires_grad:
                place = _spread(parameter)
            else:
                continue
            tensor = parameter.detach()
            self._samples.append(_Sample(name, tensor, place, tensor[place].clone()))

    def check(self) -> None:
        """Raises NumericsError naming the first frozen tensor that moved."""
        for sample in self._samples:
            if not torch.equal(sample.tensor[sample.place], sample.values):
                raise NumericsError(
                    "frozen weights changed during training; no checkpoint of this step was written",
                    sample.name,
                    "report this as a bug, with the recipe and the output of `neuroada env`",
                )


def _spread(tensor: Tensor) -> tuple[Tensor, ...]:
    count = min(SAMPLES, tensor.numel())
    flat_N = torch.arange(count, device=tensor.device) * tensor.numel() // max(1, count)
    return torch.unravel_index(flat_N, tensor.shape)


def _frozen_entries(weight: Tensor, module: nn.Module, index_OK: Tensor) -> tuple[Tensor, ...]:
    """Entries of a target's weight outside the selection; a quantised weight keeps all of its bytes."""
    place = _spread(weight)
    if not weight.is_floating_point():
        return place
    transposed = module.transposed if isinstance(module, DeltaLayer) else is_conv1d(module)
    column_N, row_N = place if transposed else (place[1], place[0])
    chosen_NK = index_OK.to(weight.device)[row_N] == column_N[:, None]
    kept_N = ~chosen_NK.any(dim=1)
    return place[0][kept_N], place[1][kept_N]
