"""Where the rows of a layer's neurons lie in its weight.

O = output neurons, I = inputs
"""

from __future__ import annotations

from torch import Tensor, nn


def layer_shape(module: nn.Module) -> tuple[int, int]:
    """(O, I) of a linear layer; GPT-2's Conv1D stores its weight as [I, O]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (columns, rows) if is_conv1d(module) else (rows, columns)


def neurons_as_rows(weight: Tensor, module: nn.Module) -> Tensor:
    """A stored weight as [O, I]: a view, transposed for Conv1D."""
    return weight.T if is_conv1d(module) else weight


def is_conv1d(module: nn.Module) -> bool:
    """transformers' GPT-2 layer: a linear layer whose weight lies as [I, O]. Known by shape, not imported."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "weight")
