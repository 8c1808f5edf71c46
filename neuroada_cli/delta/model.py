"""Deltas over a whole model: find the target layers, attach, switch, detach.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from neuroada_cli.delta.layout import is_conv1d
from neuroada_cli.delta.linear import DeltaEmbedding, DeltaLayer, DeltaLinear
from neuroada_cli.delta.names import block_number
from neuroada_cli.delta.quantized import QuantizedDeltaLinear, is_quantized, keep_layout
from neuroada_cli.delta.triton_grad import last_transpose
from neuroada_cli.errors import nearest

ALL_LINEAR = "all-linear"


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | DeltaLinear) or is_conv1d(module)


def find_targets(
    model: nn.Module,
    include: Sequence[str] = (ALL_LINEAR,),
    exclude: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    heads: Sequence[str] = (),
) -> dict[str, nn.Module]:
    """Name -> linear layer to adapt, in the model's order; a weight shared by several layers comes once.

    include  `all-linear`, the last part of a name (q_proj), a full name, or a glob (model.layers.1?.*)
    exclude  layers to leave out, written the same way
    layers   only blocks with these numbers (the first number in a layer's name)
    heads    output heads, which `all-linear` leaves out; naming one in `include` takes it
    Raises ValueError when an entry matches no linear layer, or when nothing is left.
    """
    linear = {name: module for name, module in model.named_modules() if is_linear(module)}
    chosen: set[str] = set()
    for entry in include:
        chosen |= {n for n in linear if n not in heads} if entry == ALL_LINEAR else _matches(entry, linear)
    for entry in exclude:
        chosen -= _matches(entry, linear)
    if layers is not None:
        chosen = {name for name in chosen if _in_blocks(name, linear, layers)}
    if not chosen:
        raise ValueError("the targets leave no linear layer to adapt")
    targets: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for name, module in linear.items():
        if name in chosen and id(module.weight) not in seen:
            seen.add(id(module.weight))
            targets[name] = module
    return targets


def _matches(entry: str, linear: Mapping[str, nn.Module]) -> set[str]:
    found = {
        name
        for name in linear
        if name == entry or name.rpartition(".")[2] == entry or fnmatch.fnmatchcase(name, entry)
    }
    if not found:
        kinds = sorted({name.rpartition(".")[2] for name in linear})
        hint = nearest(entry, [*kinds, *linear], f"this model has {', '.join(kinds[:12])}")
        raise ValueError(f"{entry} matches no linear layer; {hint}")
    return found


def _in_blocks(name: str, linear: Mapping[str, nn.Module], layers: Sequence[int]) -> bool:
    present = {block_number(other) for other in linear}
    for layer in layers:
        if layer not in present:
            highest = max((n for n in present if n is not None), default=-1)
            raise ValueError(f"there is no block {layer}; this model has 0..{highest}")
    return block_number(name) in layers


def sharing_modules(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Module name -> the other modules that use the same weight (tied embeddings), in one walk."""
    users = _users_of_weights(model)
    return {
        name: [other for other in users[id(model.get_submodule(name).weight)] if other != name]
        for name in names
    }


def _users_of_weights(model: nn.Module) -> dict[int, list[str]]:
    """id of a weight -> the names of all modules that use it, in one walk over the model."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if (weight := getattr(module, "weight", None)) is not None:
            users.setdefault(id(weight), []).append(name)
    return users


def attach(
    model: nn.Module,
    indices: Mapping[str, Tensor],
    deltas: Mapping[str, Tensor] | None = None,
    backend: str | None = None,
) -> dict[str, DeltaLinear]:
    """Freeze the model and give every named layer its K trainable connections per neuron.

    indices  module name -> int [O, K]
    deltas   module name -> fp32 [O, K], folded in at once; without them outputs stay exactly the base's
    Tied weights get one set of deltas for all modules that use them.
    Raises ValueError for a module that is missing, not linear, already attached, or does not fit its index.
    """
    if any(isinstance(module, DeltaLayer) for module in model.modules()):
        raise ValueError("deltas are attached already; detach or switch")
    users = _users_of_weights(model)
    model.requires_grad_(False)
    keep_layout(model)
    attached: dict[str, DeltaLinear] = {}
    for name, index_OK in indices.items():
        try:
            base = model.get_submodule(name)
            tied = [other for other in users.get(id(getattr(base, "weight", None)), []) if other != name]
            kind = QuantizedDeltaLinear if is_quantized(base) else DeltaLinear
            layer = kind.from_base(base, index_OK)
        except (AttributeError, ValueError) as error:
            detach(model)
            raise ValueError(f"{name}: {error}") from None
        layer.backend = backend
        model.set_submodule(name, layer)
        attached[name] = layer
        for other in tied:
            model.set_submodule(other, _sharing_layer(model.get_submodule(other), layer, other))
    if deltas is not None:
        switch(model, deltas)
    return attached


def _sharing_layer(base: nn.Module, owner: DeltaLinear, name: str) -> DeltaLayer:
    if isinstance(base, nn.Embedding):
        return DeltaEmbedding(base, owner)
    if is_linear(base):
        return DeltaLinear.sharing(base, owner)
    raise ValueError(f"{name} shares a target's weight, but {type(base).__name__} cannot be adapted")


def delta_layers(model: nn.Module) -> dict[str, DeltaLinear]:
    """Name -> attached layer, one per delta: of layers that share a weight, the one that was targeted."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, DeltaLinear) and not module.shares_deltas
    }


def refold(model: nn.Module) -> None:
    """Bring every weight up to date with its delta; call after each optimizer step."""
    for layer in delta_layers(model).values():
        layer.refold()
    last_transpose.clear()


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
        layer.refold()


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model is exactly the base (deltas are kept and folded back on leaving)."""
    layers = delta_layers(model).values()
    for layer in layers:
        layer.restore()
    try:
        yield
    finally:
        for layer in layers:
            layer.refold()


def detach(model: nn.Module) -> None:
    """Remove all deltas: every weight is bit-identical to the base and the original modules are back."""
    for layer in delta_layers(model).values():
        layer.restore()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, DeltaLayer):
            model.set_submodule(name, module.base)
