"""Where the rows of a layer's neurons lie in the tensor that holds its weight: the only place that knows.

O = output neurons, I = inputs, K = chosen inputs per neuron, E = experts whose matrices share one tensor
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """outputs and inputs are O and I of one matrix.

    transposed  it lies as [I, O] (GPT-2's Conv1D), else as [O, I]
    experts  E, of a tensor [E, O, I] or [E, I, O] that holds the matrices of a mixture's experts; None: one
             matrix. Neurons count through all experts: neuron e * O + o is the o-th of expert e.
    """

    outputs: int
    inputs: int
    transposed: bool = False
    experts: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(neurons of all experts, I)."""
        return self.outputs * (1 if self.experts is None else self.experts), self.inputs

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the tensor that holds the weight, in memory as in the files."""
        matrix = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return matrix if self.experts is None else (self.experts, *matrix)

    def rows(self, weight: Tensor) -> Tensor:
        """The weight with neurons as rows: a view, so what is written into it is in the weight; only of
        transposed experts a copy.
        """
        turned = weight.transpose(-1, -2) if self.transposed else weight
        return turned if self.experts is None else turned.reshape(self.shape)

    def matrices(self, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(which neurons, their matrix [O, I] as a view), expert by expert."""
        turned = weight.transpose(-1, -2) if self.transposed else weight
        for expert, weight_OI in enumerate(turned[None] if self.experts is None else turned):
            yield slice(expert * self.outputs, (expert + 1) * self.outputs), weight_OI

    def flat(self, index_OK: Tensor) -> Tensor:
        """Chosen columns as places in the contiguous tensor: int64 [O, K]."""
        return self.place(torch.arange(len(index_OK), device=index_OK.device)[:, None], index_OK.long())

    def place(self, neuron: Tensor, column: Tensor) -> Tensor:
        """Where neurons' weights for some inputs lie in the contiguous tensor (int64, broadcast)."""
        if not self.transposed:
            return neuron * self.inputs + column
        if self.experts is None:
            return column * self.outputs + neuron
        expert = neuron // self.outputs
        return (expert * self.inputs + column) * self.outputs + neuron - expert * self.outputs

    def take(self, weight: Tensor, index_OK: Tensor) -> Tensor:
        """The chosen entries [O, K]."""
        return weight.take(self.flat(index_OK))


def layout_of(module: nn.Module) -> Layout:
    """The layout of a linear layer's weight; of a quantised one, that of the weight it stands for."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not weight.is_floating_point():  # bitsandbytes packs it
        return Layout(cast(int, module.out_features), cast(int, module.in_features))
    rows, columns = weight.shape
    transposed = is_conv1d(module)
    return Layout(columns, rows, True) if transposed else Layout(rows, columns)


def layer_shape(module: nn.Module) -> tuple[int, int]:
    """(O, I) of a linear layer."""
    return layout_of(module).shape


def is_conv1d(module: nn.Module) -> bool:
    """transformers' GPT-2 layer: a linear layer whose weight lies as [I, O]. Known by shape, not imported."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "weight")
