"""The methods of the bench by name. All train through the protocol of `neuroada_cli.methods`.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuroada_cli.delta.layout import Layout, layout_of
from neuroada_cli.errors import RecipeError
from neuroada_cli.methods import METHODS, Method
from neuroada_cli.methods.peft import CONFIGS, Peft
from neuroada_cli.methods.state import TrainedByName


class Floor(TrainedByName):
    """Nothing trains: forward and input gradients, what every step below the loss has to pay at least.

    One number that no layer uses stands in for the parameters, because an optimizer wants some.
    """

    name = "floor"

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        self.freeze(model)
        self.finish(model, ())
        self._unused = nn.Parameter(torch.zeros(1, device=next(model.parameters()).device))

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return [self._unused]


class ScatterLinear(nn.Module):
    """y = x (W + scatter(delta))^T with the dense sum made in every forward, differentiated by autograd."""

    def __init__(self, base: nn.Module, index_OK: Tensor) -> None:
        super().__init__()
        assert isinstance(base.weight, nn.Parameter)
        self.weight = base.weight
        self.bias = base.bias
        self.layout = layout_of(base)
        as_rows = Layout(*self.layout.shape)  # the sum below is made of the weight with neurons as rows
        flat = as_rows.flat(index_OK.to(self.weight.device))
        self.register_buffer("positions", flat.view(-1))
        self.positions: Tensor
        self.delta = nn.Parameter(
            torch.zeros(flat.numel(), dtype=self.weight.dtype, device=self.weight.device)
        )

    def forward(self, x: Tensor) -> Tensor:
        weight_OI = self.layout.rows(self.weight)
        moved_OI = weight_OI.flatten().scatter_add(0, self.positions, self.delta).view(weight_OI.shape)
        bias = self.bias if isinstance(self.bias, Tensor) else None
        return F.linear(x, moved_OI, bias)


class Scatter(TrainedByName):
    """NeuroAda as it is usually written: a dense weight per forward, hence a dense gradient inside."""

    name = "scatter"

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        self.freeze(model)
        for name, index_OK in indices.items():
            model.set_submodule(name, ScatterLinear(model.get_submodule(name), index_OK))
        self.finish(model, whole)


def _peft(name: str) -> Callable[[], Method]:
    return lambda: Peft(name)


PEERS: dict[str, Callable[[], Method]] = {
    "floor": Floor,
    **{name: METHODS[name] for name in ("neuroada", "mask", "full")},  # any model has what these train
    "scatter": Scatter,
    **{name: _peft(name) for name in CONFIGS},
}


def check_names(names: Sequence[str]) -> None:
    """Raises RecipeError for a method that is not in PEERS."""
    for name in names:
        if name not in PEERS:
            close = difflib.get_close_matches(name, PEERS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(PEERS)}"
            raise RecipeError(f"{name!r} is not a method", "--compare", hint)
