"""Selections and adapter folders: the writer and the strict reader of both.

O = output neurons, I = inputs, K = chosen inputs per neuron

    selection.safetensors       "<module>.indices" int32 [O,K], and a JSON description in the metadata
    adapter_config.json         what PEFT expects of an adapter, plus ours
    adapter_model.safetensors   base_model.model.<module>.neuroada_values fp32 [O,K]
                                base_model.model.<module>.neuroada_indices int32 [O,K]
                                base_model.model.<parameter>  parameters trained in full

Both come from strangers as often as from ourselves: nothing in them names a path to open or code to run
(the base model's name is only shown, or given to `hub.resolve_model` when the user merges or evaluates),
and whatever is not exactly what the writer writes is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli import files, hub
from neuroada_cli.errors import ModelError

FORMAT = 1
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
VALUES, INDICES = ".neuroada_values", ".neuroada_indices"
MODULE = re.compile(r"^[\w.-]+$")
PEFT_TASKS = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}
CONFIG_KEYS = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "target_modules", "inference_mode",
    "format", "k", "criterion", "fingerprint", "tied", "settings", "modules_to_save",
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Which connections train.

    indices      module name -> int32 [O, K], ascending columns per row
    fingerprint  of the base they were chosen from (`hub.fingerprint`)
    tied         module name -> the other modules that use the same weight
    """

    indices: dict[str, Tensor]
    k: int
    criterion: str
    fingerprint: dict[str, Any]
    tied: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """What training learnt.

    deltas    module name -> fp32 [O, K]
    whole     parameter name -> tensor: parameters trained in full (a fresh head, biases)
    base      where the base model was found, and its revision
    task      "causal-lm" or "sequence-classification"
    settings  JSON values that merging and evaluating need: dtype, num_labels, labels, task, protocol, …
    """

    selection: Selection
    deltas: dict[str, Tensor]
    whole: dict[str, Tensor]
    base: str
    revision: str | None
    task: hub.Task
    settings: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------
# Selections


def write_selection(path: str | os.PathLike[str], selection: Selection) -> None:
    """Write a selection file, all or nothing. Raises ResourceError."""
    about = {
        "format": FORMAT,
        "k": selection.k,
        "criterion": selection.criterion,
        "fingerprint": selection.fingerprint,
        "tied": selection.tied,
    }
    tensors = {f"{module}.indices": index_OK for module, index_OK in selection.indices.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_tensors(path, tensors, {"neuroada_selection": json.dumps(about)})


def read_selection(path: str | os.PathLike[str]) -> Selection:
    """A selection file. Raises ModelError for anything that `write_selection` would not have written."""
    where = str(path)
    tensors, metadata = files.read_tensors(path)
    if set(metadata) != {"neuroada_selection"}:
        raise ModelError("is not a selection", where, "write one with `neuroada select`")
    about = _json(metadata["neuroada_selection"], where)
    _check_format(about, where)
    indices = {}
    for name, index_OK in tensors.items():
        module = name.removesuffix(".indices")
        if module == name:
            raise ModelError(f"holds {name}, which is not an index", where)
        indices[module] = index_OK
    if set(about) != {"format", "k", "criterion", "fingerprint", "tied"}:
        raise ModelError("has an unexpected description", where)
    return _selection(indices, about, where)


def _selection(indices: dict[str, Tensor], about: Mapping[str, Any], where: str) -> Selection:
    """The checked Selection of indices and the description that came with them."""
    k, criterion, fingerprint, tied = (about.get(n) for n in ("k", "criterion", "fingerprint", "tied"))
    if type(k) is not int or k < 1 or not isinstance(criterion, str) or not isinstance(fingerprint, dict):
        raise ModelError("has a broken description (k, criterion, fingerprint)", where)
    if not _is_tied(tied, indices):
        raise ModelError("has a broken description (tied)", where)
    if not indices:
        raise ModelError("selects nothing", where)
    for module, index_OK in indices.items():
        _check_index(module, index_OK, where)
    return Selection(indices, k, criterion, fingerprint, tied)  # type: ignore[arg-type]


def _is_tied(tied: Any, indices: Mapping[str, Tensor]) -> bool:
    return isinstance(tied, dict) and all(
        module in indices
        and isinstance(others, list)
        and all(isinstance(other, str) and MODULE.match(other) and other not in indices for other in others)
        for module, others in tied.items()
    )


def _check_index(module: str, index_OK: Tensor, where: str) -> None:
    if not MODULE.match(module):
        raise ModelError(f"{module!r} is not a module name", where)
    if index_OK.dtype != torch.int32 or index_OK.ndim != 2 or 0 in index_OK.shape:
        shape = list(index_OK.shape)
        raise ModelError(f"{module}: indices are {index_OK.dtype} {shape}, expected int32 [O, K]", where)
    negative = (index_OK < 0).any(dim=1)
    if negative.any():
        raise ModelError(f"{module}: row {int(negative.nonzero()[0])} has a negative column", where)
    unsorted = (index_OK.diff(dim=1) <= 0).any(dim=1)
    if unsorted.any():
        row = int(unsorted.nonzero()[0])
        raise ModelError(f"{module}: row {row} repeats a column or is not in ascending order", where)


def check_shapes(selection: Selection, shapes: Mapping[str, tuple[int, int]], where: str) -> None:
    """Whether a selection fits the model's layers.

    shapes  module name -> (O, I) of the model's linear layers
    Raises ModelError naming the module, and the row of a column that does not exist.
    """
    for module, index_OK in selection.indices.items():
        if module not in shapes:
            raise ModelError(f"{module} is not a linear layer of the base model", where)
        outputs, inputs = shapes[module]
        if index_OK.shape[0] != outputs:
            raise ModelError(f"{module}: {index_OK.shape[0]} rows, the base has {outputs}", where)
        outside = (index_OK >= inputs).any(dim=1)
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ModelError(f"{module}: row {row} has a column outside 0..{inputs - 1}", where)


# ---------------------------------------------------------------------------------------------------
# Adapter folders


def write_adapter(
    folder: Path, adapter: Adapter, tokenizer: Any = None, recipe_yaml: str | None = None
) -> None:
    """Write an adapter's files into an existing folder (the temporary one of `files.atomic_folder`)."""
    selection = adapter.selection
    tensors = {PREFIX + name: tensor for name, tensor in adapter.whole.items()}
    for module, index_OK in selection.indices.items():
        tensors[PREFIX + module + INDICES] = index_OK
        tensors[PREFIX + module + VALUES] = adapter.deltas[module]
    config = {
        "peft_type": "NEUROADA",
        "task_type": PEFT_TASKS[adapter.task],
        "base_model_name_or_path": adapter.base,
        "revision": adapter.revision,
        "target_modules": sorted(selection.indices),
        "inference_mode": True,
        "format": FORMAT,
        "k": selection.k,
        "criterion": selection.criterion,
        "fingerprint": selection.fingerprint,
        "tied": selection.tied,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.whole}) or None,
        "settings": adapter.settings,
    }
    files.write_tensors(folder / TENSORS, tensors, {"format": "pt"})
    files.write_json(folder / CONFIG, config)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if recipe_yaml is not None:
        files.write_text(folder / "recipe.yaml", recipe_yaml)
    files.write_text(folder / "README.md", _model_card(adapter))


def read_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """An adapter folder, verified against its manifest.

    Raises ModelError, naming module and row, for anything that `write_adapter` would not have written.
    """
    folder = Path(folder)
    where = str(folder)
    if not (folder / CONFIG).is_file():
        raise ModelError("is not an adapter folder", where, f"it has no {CONFIG}")
    files.verify_folder(folder)
    config = files.read_json(folder / CONFIG)
    task = _check_config(config, where)
    tensors, _ = files.read_tensors(folder / TENSORS)
    deltas, indices, whole = _sort_tensors(tensors, where)
    if set(indices) != set(deltas) or set(indices) != set(config["target_modules"]):
        odd = sorted((set(indices) ^ set(deltas)) | (set(indices) ^ set(config["target_modules"])))[0]
        raise ModelError(f"{odd} is in only some of target_modules, values and indices", where)
    selection = _selection(indices, config, where)
    for module, delta_OK in deltas.items():
        _check_delta(module, delta_OK, indices[module], where)
    for name, tensor in whole.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ModelError(f"{name} holds values that are not finite numbers", where)
    return Adapter(
        selection,
        deltas,
        whole,
        config["base_model_name_or_path"],
        config["revision"],
        task,
        config["settings"],
    )


def _check_config(config: Any, where: str) -> hub.Task:
    place = f"{where}/{CONFIG}"
    if not isinstance(config, dict) or config.get("peft_type") != "NEUROADA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ModelError(f"is an adapter of type {kind}, not NEUROADA", where)
    _check_format(config, place)
    if set(config) != CONFIG_KEYS:
        odd = sorted(set(config) ^ CONFIG_KEYS)[0]
        raise ModelError(f"{odd} is {'not a key' if odd in config else 'missing'}", place)
    targets = config["target_modules"]
    plain = (
        isinstance(config["base_model_name_or_path"], str)
        and isinstance(config["revision"], str | None)
        and isinstance(config["settings"], dict)
        and isinstance(targets, list)
        and all(isinstance(target, str) for target in targets)
    )
    if not plain:
        raise ModelError("has values of the wrong type", place)
    tasks: dict[str, hub.Task] = {"CAUSAL_LM": "causal-lm", "SEQ_CLS": "sequence-classification"}
    if config["task_type"] not in tasks:
        raise ModelError(f"task_type is {config['task_type']}", place, f"known: {', '.join(tasks)}")
    return tasks[config["task_type"]]


def _sort_tensors(
    tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    deltas, indices, whole = {}, {}, {}
    for stored, tensor in tensors.items():
        name = stored.removeprefix(PREFIX)
        if name == stored or not MODULE.match(name):
            raise ModelError(f"{stored!r} is not a tensor of an adapter", f"{where}/{TENSORS}")
        if name.endswith(VALUES):
            deltas[name.removesuffix(VALUES)] = tensor
        elif name.endswith(INDICES):
            indices[name.removesuffix(INDICES)] = tensor
        else:
            whole[name] = tensor
    return deltas, indices, whole


def _check_delta(module: str, delta_OK: Tensor, index_OK: Tensor, where: str) -> None:
    if delta_OK.dtype != torch.float32 or delta_OK.shape != index_OK.shape:
        got, wanted = f"{delta_OK.dtype} {list(delta_OK.shape)}", f"torch.float32 {list(index_OK.shape)}"
        raise ModelError(f"{module}: values are {got}, expected {wanted}", where)
    broken = ~torch.isfinite(delta_OK).all(dim=1)
    if broken.any():
        raise ModelError(f"{module}: row {int(broken.nonzero()[0])} holds NaN or infinity", where)


def find_adapter(path: str | os.PathLike[str]) -> Path:
    """The adapter folder that `path` means: itself, or of a run the best checkpoint, else the last one.

    Raises ModelError telling what was found instead.
    """
    folder = Path(path)
    if (folder / CONFIG).is_file():
        return folder
    if not folder.exists():
        raise ModelError("no such folder", str(path), "name a run or an adapter folder")
    if not folder.is_dir():
        raise ModelError("is a file", str(path), "name a run or an adapter folder")
    numbered = [p for p in folder.glob("checkpoint-*") if p.name[11:].isdecimal()]
    by_age = sorted(numbered, key=lambda p: int(p.name[11:]), reverse=True)
    for candidate in [folder / "best", folder / "last", *by_age]:
        if (candidate / CONFIG).is_file() and (candidate / files.MANIFEST).is_file():
            return candidate.resolve() if candidate.is_symlink() else candidate
    if (folder / "config.json").is_file():
        raise ModelError("is a model, not an adapter", str(path), "name the run that was trained on it")
    raise ModelError("holds no adapter and no complete checkpoint", str(path), "train first")


def check_base(fingerprint: Mapping[str, Any], folder: Path) -> None:
    """Whether the model in `folder` is the one that `fingerprint` was taken of.

    Raises ModelError naming the first difference.
    """
    found = hub.fingerprint(folder)
    if found == fingerprint:
        return
    theirs, ours = fingerprint.get("config"), found["config"]
    reason = "its weights differ in content"
    if isinstance(theirs, dict) and theirs != ours:
        key = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))[0]
        reason = f"its {key} is {ours.get(key)}, it was {theirs.get(key)}"
    elif fingerprint.get("layout") != found["layout"]:
        reason = "its tensors have other names, shapes or data types"
    raise ModelError(f"is not the base that was selected and trained on: {reason}", str(folder))


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelError("has a broken description", where)
    return value


def _check_format(about: Mapping[str, Any], where: str) -> None:
    number = about.get("format")
    if type(number) is not int or number < 1:
        raise ModelError("has no format number", where)
    if number > FORMAT:
        raise ModelError(f"has format {number}, this version reads up to {FORMAT}", where, "update neuroada")


def _model_card(adapter: Adapter) -> str:
    selection = adapter.selection
    count = sum(index_OK.numel() for index_OK in selection.indices.values())
    base = f"base_model: {adapter.base}\n" if hub.is_hub_id(adapter.base) else ""
    name = adapter.base if hub.is_hub_id(adapter.base) else Path(adapter.base).name
    return f"""---
library_name: peft
{base}tags:
- neuroada
---

# NeuroAda adapter for {name}

{selection.k} trained connections per output neuron in {len(selection.indices)} linear layers,
{count:,} values in all, chosen by {selection.criterion} ([arXiv:2510.18940](https://arxiv.org/abs/2510.18940)).

    neuroada merge THIS_FOLDER OUT      # a plain checkpoint
    neuroada eval THIS_FOLDER
"""
