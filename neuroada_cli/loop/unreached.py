"""What trains, but gets no gradient: layers that a forward does not use, or in a way that cannot learn."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from neuroada_cli.delta.model import delta_layers
from neuroada_cli.errors import NumericsError


@dataclass(frozen=True)
class Unreached:
    """names of the layers, or parameters that train whole; share of all that trains."""

    names: tuple[str, ...] = ()
    share: float = 0.0


def unreached(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Unreached:
    """After a backward pass and before the optimizer's step.

    parameters  what the optimizer steps
    A delta counts as unreached, too, where all of its layer's gradient is exactly 0: no rounding does that.
    """
    layers = {id(layer.delta): name for name, layer in delta_layers(model).items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()} | layers
    found = [
        parameter
        for parameter in parameters
        if parameter.grad is None or (id(parameter) in layers and not bool(parameter.grad.any()))
    ]
    total = sum(parameter.numel() for parameter in parameters)
    known = tuple(names[id(parameter)] for parameter in found if id(parameter) in names)
    return Unreached(known, sum(parameter.numel() for parameter in found) / max(1, total))


def refuse_unreached(found: Unreached, wanted: Mapping[str, Collection[str]]) -> None:
    """Raises NumericsError for a target that was named and of which no layer gets a gradient.

    wanted  entry of `select.targets` -> the layers it means
    """
    for entry, names in wanted.items():
        if names and all(_inside(name, found.names) for name in names):
            raise NumericsError(
                f"{entry} gets no gradient: the model's forward does not use {_listed(sorted(names))} in a "
                "way that can be trained",
                "select.targets",
                "leave it out",
            )


def _inside(layer: str, names: Sequence[str]) -> bool:
    """Whether the layer, or what a method has put into it, is among them."""
    return any(name == layer or name.startswith(f"{layer}.") for name in names)


def described(found: Unreached) -> str:
    """One line."""
    count = len(found.names)
    layers = "1 layer gets" if count == 1 else f"{count} layers get"
    return f"{layers} no gradient, {100 * found.share:.2g} % of what trains: {_listed(found.names)}"


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
