"""Deltas over a whole model: attach, switch, detach.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from neuroada_cli.delta.fold import fold_all
from neuroada_cli.delta.linear import DeltaLayer, DeltaLinear, DeltaWeight
from neuroada_cli.delta.native import last_columns
from neuroada_cli.delta.quantized import QuantizedDeltaLinear, is_quantized, keep_layout
from neuroada_cli.delta.targets import Target, is_plain, target_of
from neuroada_cli.delta.trained_weight import unwatch, watch
from neuroada_cli.delta.triton_grad import last_transpose

DELTAS = "_deltas"  # behind an attribute's name: where the deltas of a weight lie that keeps its own module


def attach(
    model: nn.Module,
    indices: Mapping[str, Tensor],
    deltas: Mapping[str, Tensor] | None = None,
    backend: str | None = None,
) -> dict[str, DeltaLayer]:
    """Freeze the model and give every named layer its K trainable connections per neuron.

    indices  target -> int [O, K]
    deltas   target -> fp32 [O, K], folded in at once; without them outputs stay exactly the base's
    A module that is more than a plain linear layer stays and computes with the folded weight in its own way.
    Tied weights have one set of deltas, which gets the gradients of all their users.
    Raises ValueError for a target that is missing, not linear, already attached, or does not fit its index.
    """
    if any(isinstance(module, DeltaLayer) for module in model.modules()):
        raise ValueError("deltas are attached already; detach or switch")
    model.requires_grad_(False)
    keep_layout(model)
    attached: dict[str, DeltaLayer] = {}
    for name, index_OK in indices.items():
        try:
            attached[name] = _attach(model, name, target_of(model, name), index_OK)
        except (AttributeError, ValueError) as error:
            detach(model)
            raise ValueError(f"{name}: {error}") from None
        attached[name].backend = backend
    if deltas is not None:
        switch(model, deltas)
    return attached


def _attach(model: nn.Module, name: str, target: Target, index_OK: Tensor) -> DeltaLayer:
    owner = target.owner
    layer: DeltaLayer
    if not target.can_train:
        raise ValueError(f"{type(owner).__name__} is not a linear layer")
    if is_plain(owner):
        kind = QuantizedDeltaLinear if is_quantized(owner) else DeltaLinear
        layer = kind.from_base(owner, index_OK)
        model.set_submodule(name, layer)
    else:
        layer = DeltaWeight(owner, target.attribute, target.layout, index_OK)
        owner.add_module(target.attribute + DELTAS, layer)
    if not is_quantized(owner):
        watch(target.weight, layer)
    return layer


def delta_layers(model: nn.Module) -> dict[str, DeltaLayer]:
    """Target -> the layer attached there."""
    return dict(_attached(model))


def _attached(model: nn.Module) -> Iterator[tuple[str, DeltaLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, DeltaLinear):
            yield name, module
        elif isinstance(module, DeltaWeight):
            owner = name.rpartition(".")[0]
            yield owner if module.attribute == "weight" else f"{owner}.{module.attribute}", module


def refold(model: nn.Module) -> None:
    """Bring every weight up to date with its delta; call after each optimizer step."""
    refold_layers(delta_layers(model).values())


def refold_layers(layers: Collection[DeltaLayer]) -> None:
    """As `refold`, for whoever has the layers at hand: walking a model takes longer than folding K=1."""
    packed = [layer for layer in layers if isinstance(layer, QuantizedDeltaLinear)]
    fold_all(layer.to_fold() for layer in layers if not isinstance(layer, QuantizedDeltaLinear))
    for layer in packed:
        layer.refold()
    forget_inputs()


def forget_inputs() -> None:
    """Give up the copies that were made of the last layer's inputs; call when a step is over."""
    last_transpose.clear()
    last_columns.clear()


@torch.no_grad()
def switch(model: nn.Module, deltas: Mapping[str, Tensor]) -> None:
    """Replace all deltas (same selection) and refold: another adapter on the same loaded model.

    Raises ValueError when names or shapes differ from the attached layers.
    """
    layers = delta_layers(model)
    if layers.keys() != deltas.keys():
        odd = sorted(layers.keys() ^ deltas.keys())[0]
        raise ValueError(f"{odd} is in only one of the model and the deltas")
    for name, layer in layers.items():
        if layer.delta.shape != deltas[name].shape:
            shapes = f"{tuple(deltas[name].shape)}, attached {tuple(layer.delta.shape)}"
            raise ValueError(f"{name}: deltas are {shapes}")
        layer.delta.copy_(deltas[name])
    refold_layers(layers.values())


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model is exactly the base (deltas are kept and folded back on leaving)."""
    layers = delta_layers(model).values()
    for layer in layers:
        layer.restore()
    try:
        yield
    finally:
        refold_layers(layers)


def detach(model: nn.Module) -> None:
    """Remove all deltas: every weight is bit-identical to the base and the original modules are back."""
    for layer in delta_layers(model).values():
        layer.restore()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, DeltaLayer):
            unwatch(module.weight)
        if isinstance(module, DeltaLinear):
            model.set_submodule(name, module.base)
        elif isinstance(module, DeltaWeight):
            owner, _, own = name.rpartition(".")
            del model.get_submodule(owner)._modules[own]
