"""The layers of a model that deltas can be folded into, by name.

O = output neurons, I = inputs
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from neuroada_cli.delta.layout import Layout, is_conv1d, layout_of
from neuroada_cli.delta.linear import DeltaLinear
from neuroada_cli.delta.mixtures import fused_experts, is_router, routers_of
from neuroada_cli.delta.names import block_number
from neuroada_cli.delta.quantized import compute_dtype, dequantize, is_quantized
from neuroada_cli.errors import nearest

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Target:
    """One weight whose rows are neurons: an attribute of a module, on the meta device or loaded."""

    owner: nn.Module
    attribute: str = "weight"

    @property
    def weight(self) -> nn.Parameter:
        found = getattr(self.owner, self.attribute)
        assert isinstance(found, nn.Parameter)
        return found

    @property
    def layout(self) -> Layout:
        if isinstance(self.owner, DeltaLinear):
            return self.owner.layout
        transposed = fused_experts(self.owner).get(self.attribute)
        if transposed is None:
            return layout_of(self.owner)
        experts, rows, columns = self.weight.shape
        outputs, inputs = (columns, rows) if transposed else (rows, columns)
        return Layout(outputs, inputs, transposed, experts)

    @property
    def can_train(self) -> bool:
        """Whether deltas can be folded into it."""
        return _is_matrix(self.owner) or self.attribute in fused_experts(self.owner)

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I), the neurons of all experts where there are several."""
        return self.layout.shape


def matrices_of(target: Target) -> Iterator[tuple[slice, Tensor]]:
    """(which neurons, their weights [O, I]) of a loaded layer, expert by expert.

    Views, except of a bitsandbytes layer.
    """
    if is_quantized(target.owner):
        weight_OI = dequantize(target.owner, compute_dtype(target.owner))
        yield slice(0, len(weight_OI)), weight_OI
        return
    yield from target.layout.matrices(target.weight.detach())


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | DeltaLinear) or is_conv1d(module)


def is_plain(module: nn.Module) -> bool:
    """Whether a linear layer does what `F.linear` does and nothing else, so that another may take its place.

    Falcon's rounds before it adds the bias, a router returns a tuple, and others hook `forward`.
    """
    if is_quantized(module):
        return True
    if "forward" in vars(module):
        return False
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    return is_conv1d(module) and type(module).__module__ == "transformers.pytorch_utils"


def targets_of(model: nn.Module) -> dict[str, Target]:
    """Name -> every weight that can be adapted, in the model's order.

    `<module>` stands for its `weight`; matrices of experts that share one tensor are named like that tensor:
    `model.layers.0.mlp.experts.gate_up_proj`.
    """
    found: dict[str, Target] = {}
    for name, module in model.named_modules():
        if _is_matrix(module):
            found[name] = Target(module)
        for attribute in fused_experts(module):
            found[name if attribute == "weight" else f"{name}.{attribute}"] = Target(module, attribute)
    return found


def _is_matrix(module: nn.Module) -> bool:
    """A linear layer, or a router that computes with a matrix of its own."""
    if is_linear(module):
        return True
    weight = module._parameters.get("weight")
    return is_router(module) and weight is not None and weight.ndim == 2


def target_of(model: nn.Module, name: str) -> Target:
    """The target of that name. Raises AttributeError where there is no such module or parameter."""
    try:
        return Target(model.get_submodule(name))
    except AttributeError:
        owner, _, attribute = name.rpartition(".")
        target = Target(model.get_submodule(owner), attribute)
        if not target.can_train:
            raise
        return target


def parameter_name(model: nn.Module, name: str) -> str:
    """The name of a target's weight among the model's parameters."""
    attribute = target_of(model, name).attribute
    return name if name.endswith(f".{attribute}") and attribute != "weight" else f"{name}.weight"


def find_targets(
    model: nn.Module,
    include: Sequence[str] = (ALL_LINEAR,),
    exclude: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    heads: Sequence[str] = (),
    parts: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Target]:
    """Name -> layer to adapt, in the model's order; a weight shared by several layers comes once.

    include  `all-linear`, a part of the model, the last part of a name (q_proj), a full name, or a glob
             (model.layers.1?.*)
    exclude  layers to leave out, written the same way
    layers   only blocks with these numbers (the first number in a layer's name)
    heads    output heads, which `all-linear` leaves out, as it does routers; naming one in `include` takes it
    parts    name of a part (encoder, vision) -> its linear layers
    Raises ValueError when an entry matches no linear layer, or when nothing is left.
    """
    linear = targets_of(model)
    quiet = {*heads, *routers_of(model)}
    groups = {ALL_LINEAR: [name for name in linear if name not in quiet], **(parts or {})}
    chosen: set[str] = set()
    for entry in include:
        chosen |= _matches(entry, linear, groups)
    for entry in exclude:
        chosen -= _matches(entry, linear, parts or {})
    if layers is not None:
        chosen = {name for name in chosen if _in_blocks(name, linear, layers)}
    if not chosen:
        raise ValueError("the targets leave no linear layer to adapt")
    found: dict[str, Target] = {}
    seen: set[int] = set()
    for name, target in linear.items():
        if name in chosen and id(target.weight) not in seen:
            seen.add(id(target.weight))
            found[name] = target
    return found


def _matches(entry: str, linear: Iterable[str], groups: Mapping[str, Sequence[str]]) -> set[str]:
    if entry in groups:
        return set(groups[entry])
    found = {
        name
        for name in linear
        if name == entry or name.rpartition(".")[2] == entry or fnmatch.fnmatchcase(name, entry)
    }
    if not found:
        kinds = sorted({name.rpartition(".")[2] for name in linear})
        hint = nearest(entry, [*groups, *kinds, *linear], f"this model has {', '.join(kinds[:12])}")
        raise ValueError(f"{entry} matches no linear layer; {hint}")
    return found


def _in_blocks(name: str, linear: Iterable[str], layers: Sequence[int]) -> bool:
    present = {block_number(other) for other in linear}
    for layer in layers:
        if layer not in present:
            highest = max((n for n in present if n is not None), default=-1)
            raise ValueError(f"there is no block {layer}; this model has 0..{highest}")
    return block_number(name) in layers


def sharing_modules(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Target -> the other modules that use the same weight (tied embeddings), in one walk."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            users.setdefault(id(weight), []).append(name)
    weights = {name: id(target_of(model, name).weight) for name in names}
    return {name: [other for other in users.get(key, ()) if other != name] for name, key in weights.items()}


def added_apart(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Target -> another module with the same weight, which a layer put beside the target does not reach.

    One that hangs in the same place under another name is the target itself.
    """

    def place(name: str) -> tuple[nn.Module, str]:
        owner, _, own = name.rpartition(".")
        return model.get_submodule(owner), own

    found: dict[str, str] = {}
    for name, others in sharing_modules(model, names).items():
        apart = [other for other in others if place(other) != place(name)]
        if apart:
            found[name] = apart[0]
    return found


def shapes_of(targets: Mapping[str, Target]) -> dict[str, tuple[int, int]]:
    """Target -> (O, I)."""
    return {name: target.shape for name, target in targets.items()}
