"""The parts that `select.targets` may name: `encoder` and `decoder`; `language`, `vision` and `projector`.

Found through transformers' own `get_encoder` and `get_decoder`. What neither reads pictures nor writes text
lies between the two: the projector, also where it is kept inside the vision tower (Qwen-VL's merger).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from neuroada_cli.delta.mixtures import routers_of
from neuroada_cli.delta.names import block_number
from neuroada_cli.delta.targets import targets_of
from neuroada_cli.hub.loading import default_exclude

MERGER = "merger"  # in the name of a module of a vision tower that leads to the language's width


def parts_of(model: nn.Module) -> dict[str, list[str]]:
    """Part -> its linear layers, in the model's order, without heads. Empty for a model of one stack."""
    stacks, heads = stacks_of(model), set(default_exclude(model))
    quiet = heads | routers_of(model)
    linear = [name for name in targets_of(model) if name not in quiet]
    found = {part: _inside(linear, stack) for part, stack in stacks.items()}
    if "vision" in stacks:
        apart = {name for name in found["vision"] if MERGER in name.removeprefix(stacks["vision"])}
        unread = {*_unread(model, found["vision"], stacks["vision"])}
        linear = [name for name in linear if name not in unread]
        found["vision"] = [name for name in found["vision"] if name not in apart | unread]
        found["projector"] = [name for name in linear if not any(name in names for names in found.values())]
    return {part: names for part, names in found.items() if names}


def stacks_of(model: nn.Module) -> dict[str, str]:
    """Part -> the module it is (a projector is what is left). Empty for a model of one stack."""
    known: dict[str, str] | None = getattr(model, "stacks", None)  # of a graph that was rebuilt
    if known is not None:
        return known
    named: Any = model
    stacks: dict[str, nn.Module] = {}
    if getattr(named.config, "is_encoder_decoder", False):
        stacks = {"encoder": named.get_encoder(), "decoder": named.get_decoder()}
    elif _may_look(named):
        stacks = {"language": named.get_decoder(), "vision": named.get_encoder(modality="image")}
    where = {id(module): name for name, module in model.named_modules()}
    found = {part: where.get(id(stack), "") for part, stack in stacks.items()}
    return found if all(found.values()) else {}


def left_out(model: nn.Module, parts: Mapping[str, list[str]]) -> list[str]:
    """The linear layers that `all-linear` leaves out: output heads, and of a model that looks at pictures all
    that is not language.
    """
    heads, language, routers = default_exclude(model), parts.get("language"), routers_of(model)
    if language is None:
        return heads
    kept = {*heads, *language, *routers}
    return [*heads, *(name for name in targets_of(model) if name not in kept)]


def _inside(names: list[str], module: str) -> list[str]:
    return [name for name in names if name.startswith(f"{module}.")]


def _unread(model: Any, names: list[str], tower: str) -> list[str]:
    """Layers that nothing reads: LLaVA takes the vision tower's states before its last block (its config's
    `vision_feature_layer` is -2), and all take them before SigLIP's pooling `head`.
    """
    taken = getattr(model.config, "vision_feature_layer", None)
    numbers = {name: block_number(name.removeprefix(f"{tower}.")) for name in names}
    depth = 1 + max((number for number in numbers.values() if number is not None), default=-1)
    if not isinstance(taken, int):  # several of them: the deepest one
        taken = (
            max((n % (depth + 1) for n in taken), default=depth) if isinstance(taken, list | tuple) else depth
        )
    read = taken % (depth + 1)  # states[n] is what block n - 1 gives, states[0] what goes into the first
    late = [name for name, number in numbers.items() if number is not None and number >= read]
    return [*late, *(name for name in names if name.startswith(f"{tower}.head."))]


def _may_look(model: Any) -> bool:
    """Whether it writes, and its config has a part for text and one for pictures."""
    config = model.config
    parts = getattr(config, "vision_config", None) is not None and config.get_text_config() is not config
    return parts and bool(model.can_generate())
