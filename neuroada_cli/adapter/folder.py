"""Adapter folders: the writer and the strict reader. (Selections come with them: `selections`.)

O = output neurons, K = chosen inputs per neuron

    adapter_config.json         what PEFT expects of an adapter, plus ours
    adapter_model.safetensors   base_model.model.<module>.neuroada_values fp32 [O,K]
                                base_model.model.<module>.neuroada_indices int32 [O,K]
                                base_model.model.<parameter>  parameters trained in full

An adapter comes from strangers as often as from ourselves: nothing in it names a path to open or code to run
(the base model's name is only shown, or given to `hub.resolve_model` when the user merges or evaluates),
and whatever is not exactly what the writer writes is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli import files, hub
from neuroada_cli.adapter.base_name import HERE, found
from neuroada_cli.adapter.config import (
    OWN_TASKS,
    PEFT_TASKS,
    as_config,
    check_config,
    method_of,
    method_problem,
    names_what_is_saved,
)
from neuroada_cli.delta.finite import all_finite, broken_row
from neuroada_cli.delta.index import size
from neuroada_cli.errors import ModelError, NumericsError
from neuroada_cli.files.folders import ADAPTER_CONFIG
from neuroada_cli.hub.tokenizer_class import without_calls
from neuroada_cli.methods import METHODS
from neuroada_cli.methods.facts import NEUROADA
from neuroada_cli.selection.file import (
    MODULE,
    Selection,
    check_base,
    check_shapes,
    checked_selection,
    first_row,
    format_of,
    read_selection,
    write_selection,
)
from neuroada_cli.show.numbers import counted

__all__ = [
    "Adapter",
    "AdapterFolder",
    "Selection",
    "check_base",
    "check_shapes",
    "how_trained",
    "open_adapter",
    "read_adapter",
    "read_selection",
    "write_adapter",
    "write_selection",
]

METADATA = {"format": "pt"}
TENSORS = "adapter_model.safetensors"
RECIPE = "recipe.yaml"
TOKENIZER, TEMPLATES = "tokenizer_config.json", "additional_chat_templates"
# beside config and tensors, what commands read of an adapter folder: its recipe, and a tokenizer's files
ALSO_READ = re.compile(
    r"recipe\.yaml|config\.json|(tokenizer|vocab|special_tokens|added_tokens|chat_template|merges)[\w.-]*"
    r"|[\w.-]+\.(model|spm|tiktoken)"
)
PAPER = "by NeuroAda ([arXiv:2510.18940](https://arxiv.org/abs/2510.18940))"
IN_PEFT = """
PEFT knows this adapter's type once the plug-in is imported (`pip install 'neuroada-cli[peft]'`):

    import neuroada_cli.peft_plugin     # then as ever: AutoPeftModelForCausalLM.from_pretrained
"""
PREFIX = "base_model.model."
VALUES, INDICES = ".neuroada_values", ".neuroada_indices"
WHOLE_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


@dataclass(frozen=True)
class Adapter:
    """What training learnt.

    deltas    module name -> fp32 [O, K]
    whole     parameter name -> tensor: parameters trained in full (a fresh head, biases)
    base      where the base model was found, and its revision
    task      the class of model it was trained as
    settings  JSON values that merging and evaluating need: dtype, num_labels, labels, task, protocol, …
    """

    selection: Selection
    deltas: dict[str, Tensor]
    whole: dict[str, Tensor]
    base: str
    revision: str | None
    task: hub.ModelTask
    settings: dict[str, Any] = field(default_factory=dict)


def write_adapter(
    folder: Path, adapter: Adapter, tokenizer: Any = None, recipe_yaml: str | None = None
) -> None:
    """Write an adapter's files into an existing folder (the temporary one of `files.atomic_folder`).

    Raises NumericsError for values that the reader would refuse, so that they never take the place of good
    ones; ResourceError for the disk.
    """
    selection = adapter.selection
    _check_finite(adapter)
    tensors = {PREFIX + name: tensor for name, tensor in adapter.whole.items()}
    for module, index_OK in selection.indices.items():
        tensors[PREFIX + module + INDICES] = index_OK
        tensors[PREFIX + module + VALUES] = adapter.deltas[module]
    config = as_config(
        task_type=PEFT_TASKS.get(adapter.task), base=adapter.base, revision=adapter.revision,
        targets=selection.indices, number=format_of(selection), k=selection.k, criterion=selection.criterion,
        fingerprint=selection.fingerprint, tied=selection.tied, whole=adapter.whole,
        settings=adapter.settings | ({"model_task": adapter.task} if adapter.task in OWN_TASKS else {}),
    )  # fmt: skip
    files.write_tensors(folder / TENSORS, tensors, METADATA)
    files.write_json(folder / ADAPTER_CONFIG, config)
    if tokenizer is not None:
        tokenizer = without_calls(tokenizer)
        tokenizer.save_pretrained(folder)
    if recipe_yaml is not None:
        files.write_text(folder / RECIPE, recipe_yaml)
    files.write_text(folder / "README.md", _model_card(adapter))


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter folder whose files are those that were written: hashed once, when it was opened.

    manifest  its "files" map each name to {"sha256", "size"}
    reading   as long as this lives, a training leaves the folder where it is
    """

    folder: Path
    manifest: dict[str, Any]
    reading: files.Reading | None = field(default=None, repr=False, compare=False)

    def file(self, name: str) -> Path | None:
        """One of the files that were written; None where there was none, whatever lies there now."""
        return self.folder / name if name in self.manifest["files"] else None


def open_adapter(
    folder: str | os.PathLike[str], also: tuple[str, ...] = (), reading: files.Reading | None = None
) -> AdapterFolder:
    """Compare a folder with its manifest, file by file.

    also     names that it has to hold besides what every adapter does
    reading  the folder, kept from being removed
    Nothing that is read of it (config, tensors, recipe, tokenizer) may be left out of the manifest. A folder
    that PEFT saved has none; its files are taken as they are.
    Raises ModelError for a folder that is none, and for whatever differs.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / ADAPTER_CONFIG):
        raise ModelError("is not an adapter folder", str(folder), f"it has no {ADAPTER_CONFIG}")
    read = {entry.name for entry in os.scandir(folder) if ALSO_READ.fullmatch(entry.name)}
    if os.path.isdir(folder / TEMPLATES):
        read |= {f"{TEMPLATES}/{entry.name}" for entry in os.scandir(folder / TEMPLATES)}
    needed = (ADAPTER_CONFIG, TENSORS, *sorted(read), *also)
    if not os.path.isfile(folder / files.MANIFEST) and _saved_by_peft(folder):
        return AdapterFolder(folder, files.take_stock(folder, needed), reading)
    return AdapterFolder(folder, files.verify_folder(folder, needed), reading)


def _saved_by_peft(folder: Path) -> bool:
    """Whether PEFT wrote it, through our plug-in: without a manifest, since trainers add their own files."""
    config = files.read_json(folder / ADAPTER_CONFIG)
    return isinstance(config, dict) and isinstance(config.get("peft_version"), str)


def method_in(source: AdapterFolder) -> str:
    """What an opened folder's adapter was trained by. Raises ModelError for a config that is none."""
    config = files.read_json(source.folder / ADAPTER_CONFIG)
    check_config(config, str(source.folder / ADAPTER_CONFIG))
    return method_of(config["settings"])


def read_adapter(source: str | os.PathLike[str] | AdapterFolder) -> Adapter:
    """The adapter in a folder, which is opened for it where that was not done already.

    Raises ModelError, naming module and row, for anything that `write_adapter` would not have written.
    """
    folder = (source if isinstance(source, AdapterFolder) else open_adapter(source)).folder
    where = str(folder)
    config = files.read_json(folder / ADAPTER_CONFIG)
    task = check_config(config, f"{where}/{ADAPTER_CONFIG}")
    tensors, metadata = files.read_tensors(folder / TENSORS)
    if metadata != METADATA:
        raise ModelError("has unexpected metadata", f"{where}/{TENSORS}")
    deltas, indices, whole = _sort_tensors(tensors, where)
    _check_names(config, deltas, indices, whole, where)
    if "peft_version" in config:
        whole = {name: tensor for name, tensor in whole.items() if not is_frozen(name, indices)}
    selection = checked_selection(indices, config, where)
    for module, delta_OK in deltas.items():
        _check_delta(module, delta_OK, indices[module], where)
    for name, tensor in whole.items():
        _check_whole(name, tensor, where)
    problem = method_problem(config["settings"], indices, deltas, whole)
    if problem is not None:
        raise ModelError(problem, where)
    return Adapter(
        selection,
        deltas,
        whole,
        found(config["base_model_name_or_path"], folder),
        config["revision"],
        task,
        config["settings"],
    )


def _check_names(
    config: Mapping[str, Any],
    deltas: Mapping[str, Tensor],
    indices: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
    where: str,
) -> None:
    """Config and tensors must speak of the same modules, and no weight may be both adapted and whole."""
    targets = set(config["target_modules"])
    if not set(indices) == set(deltas) == targets or len(targets) != len(config["target_modules"]):
        odd = sorted((set(indices) ^ set(deltas)) | (set(indices) ^ targets) or targets)[0]
        raise ModelError(f"{odd[:80]} is not once in each of target_modules, values and indices", where)
    if not names_what_is_saved(config["modules_to_save"], whole):
        raise ModelError("modules_to_save does not name the modules that are saved whole", where)
    both = sorted(name for name in whole if name.removesuffix(".weight") in indices)
    if both and not METHODS[method_of(config["settings"])].everything:
        raise ModelError(f"{both[0][:80]} is both adapted and trained whole", where)


def _sort_tensors(
    tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    deltas, indices, whole = {}, {}, {}
    for stored, tensor in tensors.items():
        name = stored.removeprefix(PREFIX)
        if name == stored or not MODULE.fullmatch(name):
            raise ModelError(f"{stored[:80]!r} is not a tensor of an adapter", f"{where}/{TENSORS}")
        if name.endswith(VALUES):
            deltas[name.removesuffix(VALUES)] = tensor
        elif name.endswith(INDICES):
            indices[name.removesuffix(INDICES)] = tensor
        else:
            whole[name] = tensor
    return deltas, indices, whole


def is_frozen(name: str, modules: Container[str]) -> bool:
    """Whether a tensor is the base's own under an adapted layer: PEFT saves a head's beside its adapter, and
    the fingerprint says which base that is.
    """
    module, inside, _ = name.rpartition(".base_layer.")
    return bool(inside) and module in modules


def _check_delta(module: str, delta_OK: Tensor, index_OK: Tensor, where: str) -> None:
    if delta_OK.dtype != torch.float32 or delta_OK.shape != index_OK.shape:
        got, wanted = f"{delta_OK.dtype} {list(delta_OK.shape)}", f"torch.float32 {list(index_OK.shape)}"
        raise ModelError(f"{module}: values are {got}, expected {wanted}", where)
    if int(index_OK.min()) < 0:
        loose_OK = (index_OK < 0) & (delta_OK != 0)
        if loose_OK.any():
            raise ModelError(f"{module}: row {first_row(loose_OK)} has a value without a column", where)
    if not all_finite(delta_OK):
        raise ModelError(f"{module}: row {broken_row(delta_OK)} holds NaN or infinity", where)


def _check_whole(name: str, tensor: Tensor, where: str) -> None:
    if tensor.dtype not in WHOLE_DTYPES:
        raise ModelError(f"{name}: values are {tensor.dtype}, expected floating point", where)
    if not all_finite(tensor):
        raise ModelError(f"{name} holds NaN or infinity", where)


def _check_finite(adapter: Adapter) -> None:
    for name, tensor in {**adapter.deltas, **adapter.whole}.items():
        if not all_finite(tensor):
            raise NumericsError(
                f"{name} holds NaN or infinity and is not saved", fix="lower the learning rate"
            )


def how_trained(adapter: Adapter) -> str:
    """For model cards, one line: which values trained by which method, on what, under whose rules, and what
    was left out.
    """
    selection, settings = adapter.selection, adapter.settings
    method = method_of(settings)
    if METHODS[method].chosen:
        count = sum(size(index_OK) for index_OK in selection.indices.values())
        layers = counted(len(selection.indices), "linear layer")
        what = (
            f"{counted(selection.k, 'trained connection')} per output neuron in {layers}, "
            f"{count:,} values in all, chosen by {selection.criterion}"
        )
    else:
        what = f"{sum(tensor.numel() for tensor in adapter.whole.values()):,} parameters trained whole"
    what += f", {PAPER if METHODS[method] is NEUROADA else f'by the baseline method `{method}`'}."
    rules = [f"task `{settings['task']}`"] if "task" in settings else []
    if "protocol" in settings and adapter.task not in hub.CLASSIFIERS:
        rules += [f"protocol `{settings['protocol']}`", f"loss on {settings.get('loss_mask', 'unknown')}"]
    lines = [f"Trained on: {', '.join(rules)}."] if rules else []
    return " ".join(
        [what, *lines, *(f"{line[:1].upper()}{line[1:]}." for line in settings.get("left_out", ()))]
    )


def _model_card(adapter: Adapter) -> str:
    base = f"base_model: {adapter.base}\n" if hub.is_hub_id(adapter.base) else ""
    name = adapter.base if hub.is_hub_id(adapter.base) else Path(adapter.base).name
    local = f"\n\nIts base lay at `{adapter.base}`: name your copy of it with `--base`."
    local = local if adapter.base.startswith(HERE) else ""
    in_peft = METHODS[method_of(adapter.settings)].chosen and not adapter.selection.tied
    return f"""---
library_name: neuroada-cli
{base}tags:
- neuroada
---

# NeuroAda adapter for {name}

{how_trained(adapter)}{local}

    neuroada merge THIS_FOLDER OUT      # a plain checkpoint, which transformers loads alone
    neuroada eval THIS_FOLDER
{IN_PEFT if in_peft else ""}"""
