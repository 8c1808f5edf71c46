"""The methods of the bench by name. All train through the protocol of `neuroada_cli.methods`.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuroada_cli.delta.layout import Layout, layout_of
from neuroada_cli.errors import RecipeError, nearest
from neuroada_cli.methods import METHODS
from neuroada_cli.methods.peft import CONFIGS, Peft
from neuroada_cli.methods.protocol import Method
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


EXTRA: dict[str, Callable[[], Method]] = {
    "floor": Floor,
    "scatter": Scatter,
    **{name: partial(Peft, name) for name in CONFIGS},  # at the bench's own sizes and data types
}


def peers() -> list[str]:
    """All names: the floor, every method that trains without a fresh head or tiles, and the bench's own."""
    trained = [name for name, facts in METHODS.items() if not facts.only_fresh and not facts.tiles]
    return list(dict.fromkeys([*EXTRA, *trained]))


def make(name: str) -> Method:
    """A fresh method. Raises ResourceError for a package that is missing."""
    return EXTRA[name]() if name in EXTRA else METHODS[name].build()


def takes_k(name: str) -> bool:
    """Whether its numbers follow from the connections per neuron."""
    return name in ("scatter", "supertuning") or (name in METHODS and METHODS[name].chosen)


def folds(name: str) -> bool:
    """Whether it writes into chosen entries of weights that all methods share."""
    return name in METHODS and METHODS[name].folds


def owns_weights(name: str) -> bool:
    """Whether it trains the model's own parameters, and so needs weights of its own."""
    facts = METHODS.get(name)
    return name not in EXTRA and facts is not None and not facts.folds and facts.marks is None


def trains_quantized(name: str) -> bool:
    """Whether it trains on weights in 4 or 8 bits; the floor trains nothing, so it does."""
    facts = METHODS.get(name.rstrip("0123456789"))  # lora32 is lora
    return name == "floor" or (facts is not None and facts.quantized)


def check_names(names: Sequence[str], quantization: str | None = None) -> None:
    """Raises RecipeError for a method that there is not, or that cannot train a base quantised like this."""
    for name in names:
        if name not in peers():
            raise RecipeError(f"{name!r} is not a method", "--compare", nearest(name, peers()))
        if quantization is not None and not trains_quantized(name):
            known = ", ".join(filter(trains_quantized, peers()))
            raise RecipeError(
                f"{name} cannot train weights in model.quantization={quantization}",
                "--compare",
                f"choose of {known}",
            )
