"""Where the rows of a layer's neurons lie in the tensor that holds its weight: the only place that knows.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """outputs and inputs are O and I; transposed: the tensor lies as [I, O] (GPT-2's Conv1D), else [O, I]."""

    outputs: int
    inputs: int
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.outputs, self.inputs

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the tensor that holds the weight, in memory as in the files."""
        return (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)

    def rows(self, weight: Tensor) -> Tensor:
        """The weight with neurons as rows, [O, I]: a view, so what is written into it is in the weight."""
        return weight.T if self.transposed else weight

    def flat(self, index_OK: Tensor) -> Tensor:
        """Chosen columns as places in the contiguous tensor: int64 [O, K]."""
        row_O1 = torch.arange(self.outputs, device=index_OK.device)[:, None]
        if self.transposed:
            return index_OK.long() * self.outputs + row_O1
        return row_O1 * self.inputs + index_OK


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
