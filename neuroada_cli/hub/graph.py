"""A model's module graph without its code: names, classes, shapes and ties, kept from an earlier look.

A skeleton needs transformers' modelling code, whose import alone takes seconds of processor time; yet what it
says of names and shapes follows from config.json and the versions of the packages. So the first look at a
config is written down in the cache folder, and later ones rebuild the graph from that: the same names,
classes by name, parameters and ties, on the meta device, which can be walked but not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli.delta.layout import is_conv1d
from neuroada_cli.hub.kinds import ModelTask
from neuroada_cli.hub.known import known
from neuroada_cli.hub.loading import skeleton
from neuroada_cli.hub.padding import reads_padding
from neuroada_cli.hub.parts import stacks_of
from neuroada_cli.hub.resolve import read_config

FORMAT = 7  # raised when a record says other things, so that an older one is not taken for it
# The sizes by which a layer is known beside its tensors.
SIZES = (
    "in_features", "out_features", "num_embeddings", "embedding_dim", "padding_idx", "nf", "nx",
    "is_transposed", "has_gate",
)  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What loading does to a model's tensors, as far as it can be known without transformers.

    converts  there are rules for this model;  legacy  patterns of names that are changed in any model
    kept      data type asked for -> pattern of the parameters that are loaded in fp32 all the same
    """

    converts: bool
    legacy: tuple[str, ...]
    kept: Mapping[str, str] = field(default_factory=dict)

    def dtype_of(self, parameter: str, dtype: torch.dtype) -> torch.dtype:
        """The type that a parameter is loaded in, where `dtype` is asked for."""
        pattern = self.kept.get(str(dtype).removeprefix("torch."))
        return torch.float32 if pattern is not None and re.search(pattern, parameter) else dtype

    def apply_to(self, names: Iterable[str]) -> bool:
        """Whether loading files with these names is more than adding or removing a prefix."""
        old = re.compile("|".join(f"(?:{pattern})" for pattern in self.legacy) or r"(?!)")
        return self.converts or any(old.search(name) for name in names)


def rules_of(graph: Any) -> Rules:
    """The rules of a module graph, or of a model with its code."""
    if isinstance(graph, _Graph):
        return graph.rules
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        get_model_conversion_mapping,
    )

    named = re.compile(r"\(\?P<\w+>")  # each pattern numbers its groups anew
    legacy = [
        named.sub("(?:", rule.compiled_sources.pattern)
        for rule in get_checkpoint_conversion_mapping("legacy")
    ]
    return Rules(bool(get_model_conversion_mapping(graph, add_legacy=False)), tuple(legacy), _kept(graph))


def _kept(model: Any) -> dict[str, str]:
    """What a model keeps in fp32 (T5's `wo` in fp16), by the rule of `PreTrainedModel._get_dtype_plan`."""
    always, in_fp16 = (
        list(getattr(model, f"_keep_in_fp32_modules{kind}", None) or ()) for kind in ("_strict", "")
    )
    wanted = {"float16": always + in_fp16, "bfloat16": always}
    return {
        dtype: "|".join(name.replace("*", ".*") for name in names) for dtype, names in wanted.items() if names
    }


def module_graph(
    folder: Path, task: ModelTask, num_labels: int | None = None, trust_remote_code: bool = False
) -> nn.Module:
    """As `skeleton`, for whoever only walks it: from the cache where this config was looked at before.

    It has the skeleton's modules and parameters by name, `base_model_prefix`, the embeddings' getters, and of
    `config` the plain values and `get_text_config`. A model that brings code of its own is always built.
    Raises ModelError for a config that transformers cannot build.
    """

    def build() -> nn.Module:
        return skeleton(folder, task, num_labels, trust_remote_code)

    if "auto_map" in read_config(folder):
        return build()
    told_by, about = [folder / "config.json"], [FORMAT, task, num_labels]
    found: nn.Module = known("graphs", told_by, about, build, described, rebuilt)
    return found


def described(model: Any) -> dict[str, Any]:
    """The record of a skeleton: plain JSON values.

    modules  [name, class, kind, sizes];  shared  name -> the first name of the same module
    tensors  [name, shape, data type, role], the role a parameter, or a buffer that is saved or not; no shape
             where a layer goes without (a bias);  ties  name -> the first name of the same parameter
    """
    modules: list[list[Any]] = []
    tensors: list[list[Any]] = []
    shared: dict[str, str] = {}
    ties: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in seen:
            shared[name] = seen[id(module)]
            continue
        seen[id(module)] = name
        sizes = {size: getattr(module, size) for size in SIZES if hasattr(module, size)}
        modules.append([name, type(module).__name__, _kind(module), sizes])
        for own, parameter in module._parameters.items():
            full = f"{name}.{own}".lstrip(".")
            if parameter is not None and id(parameter) in seen:
                ties[full] = seen[id(parameter)]
            else:
                seen[id(parameter)] = full
                tensors.append([full, *_shape(parameter), "parameter"])
        for own, buffer in module._buffers.items():
            kept = own not in module._non_persistent_buffers_set
            tensors.append([f"{name}.{own}".lstrip("."), *_shape(buffer), "saved" if kept else "buffer"])
    config, text, rules = model.config, model.config.get_text_config(), rules_of(model)
    names = {id(module): name for name, module in model.named_modules()}
    return {
        "prefix": str(model.base_model_prefix),
        "input": names.get(id(_input_of(model))),
        "output": names.get(id(model.get_output_embeddings())),
        "stacks": stacks_of(model),
        "reads_padding": reads_padding(model),
        "config": _plain(config) | {"num_labels": config.num_labels},
        "text_config": _plain(text),
        "converts": rules.converts,
        "legacy": list(rules.legacy),
        "kept": dict(rules.kept),
        "modules": modules,
        "shared": shared,
        "tensors": tensors,
        "ties": ties,
    }


def _input_of(model: Any) -> nn.Module | None:
    """What looks tokens up or cuts pictures; None where a model cannot name it (ConvNeXt)."""
    try:
        found: nn.Module | None = model.get_input_embeddings()
        return found
    except NotImplementedError:
        return None


def _shape(tensor: Tensor | None) -> tuple[list[int] | None, str | None]:
    if tensor is None:
        return None, None
    return list(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.LayerNorm):
        return "layernorm"
    return "embedding" if isinstance(module, nn.Embedding) else "conv1d" if is_conv1d(module) else ""


def _plain(config: Any) -> dict[str, Any]:
    keys = {*config.to_dict(), *config.attribute_map}  # also by the names that all models have for them
    values = {key: _stated(config, key) for key in sorted(keys)}
    return {key: value for key, value in values.items() if _is_plain(value)}


def _stated(config: Any, key: str) -> Any:
    """None also for what each layer has for itself (Gemma 4's `head_dim`): asking the whole for it raises."""
    try:
        return getattr(config, key, None)
    except RuntimeError:
        return None


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) or (
        isinstance(value, list) and all(isinstance(each, int) for each in value)
    )


# ---------------------------------------------------------------------------------------------------
# Rebuilding


class _Graph(nn.Module):
    """The root of a rebuilt graph: what a skeleton is asked for beside its modules."""

    config: Any
    base_model_prefix: str
    rules: Rules
    embeddings: tuple[str | None, str | None]
    stacks: dict[str, str]  # asked for by `stacks_of`
    reads_padding: bool  # and by the function of that name

    def get_input_embeddings(self) -> nn.Module | None:
        return None if self.embeddings[0] is None else self.get_submodule(self.embeddings[0])

    def get_output_embeddings(self) -> nn.Module | None:
        return None if self.embeddings[1] is None else self.get_submodule(self.embeddings[1])


class _Conv1D(nn.Module):
    """Stands for GPT-2's layer, which is known by its class name and sizes."""


BASES: dict[str, type[nn.Module]] = {
    "": nn.Module, "linear": nn.Linear, "embedding": nn.Embedding, "layernorm": nn.LayerNorm,
    "conv1d": _Conv1D,
}  # fmt: skip


def rebuilt(record: dict[str, Any]) -> nn.Module:
    """The module graph of a record. Raises LookupError, TypeError or ValueError for what is no record."""
    classes: dict[tuple[str, str], type[nn.Module]] = {}
    parts: dict[str, nn.Module] = {}
    for name, of_class, kind, sizes in record["modules"]:
        base = _Graph if name == "" else BASES[kind]
        made = classes.setdefault((of_class, kind), type(of_class, (base,), {}))
        module = parts[name] = _empty(made, sizes)
        if name:
            above, _, own = name.rpartition(".")
            parts[above].add_module(own, module)
    for name, same in record["shared"].items():
        above, _, own = name.rpartition(".")
        parts[name] = parts[same]
        parts[above].add_module(own, parts[same])
    root = parts[""]
    assert isinstance(root, _Graph)
    root.base_model_prefix = record["prefix"]
    root.embeddings = record["input"], record["output"]
    root.stacks = record["stacks"]
    root.reads_padding = bool(record["reads_padding"])
    root.rules = Rules(bool(record["converts"]), tuple(map(str, record["legacy"])), dict(record["kept"]))
    text = SimpleNamespace(**record["text_config"])
    root.config = SimpleNamespace(**record["config"], get_text_config=lambda: text)
    parameters: dict[str, nn.Parameter | None] = {}
    for name, tensor, role in _tensors(record["tensors"]):
        above, _, own = name.rpartition(".")
        if role == "parameter":
            parameters[name] = None if tensor is None else nn.Parameter(tensor)
            parts[above].register_parameter(own, parameters[name])
        else:
            parts[above].register_buffer(own, tensor, persistent=role == "saved")
    for name, same in record["ties"].items():
        above, _, own = name.rpartition(".")
        parts[above].register_parameter(own, parameters[same])
    return root


def _empty(of_class: type[nn.Module], sizes: dict[str, int]) -> nn.Module:
    """A module without its own constructor, which would make and fill tensors."""
    module = of_class.__new__(of_class)
    nn.Module.__init__(module)
    for name, value in sizes.items():
        setattr(module, name, value)
    return module


def _tensors(entries: list[list[Any]]) -> Iterator[tuple[str, Tensor | None, str]]:
    for name, shape, dtype, role in entries:
        made = None if shape is None else torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        yield name, made, role
