"""Selections: which connections train; the file that holds them, and whether they fit a model.

O = output neurons, I = inputs, K = chosen inputs per neuron

    selection.safetensors       "<module>.indices" int32 [O,K], and a JSON description in the metadata

A selection comes from strangers as often as from ourselves: nothing in it names a path to open or code to
run, and whatever is not exactly what the writer writes is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli import files, hub
from neuroada_cli.delta.index import size
from neuroada_cli.delta.targets import sharing_modules
from neuroada_cli.errors import ModelError
from neuroada_cli.files import strict_json

# 1: every row has K columns; 2: a shorter row ends in -1, and layers may differ in K; 3: the fingerprint is
# of its second format, which older versions do not know
FORMAT = 3
WITH_RULE = 4  # of a selection file that says by which rule it was chosen; an adapter does not
MODULE = re.compile(r"[\w.-]+")
DESCRIPTION = {"format", "k", "criterion", "fingerprint", "tied"}
# What is known once `check_base` lets one pass, told where nobody reads the tensors whole
SAME_BASE = "the base is the one that connections were chosen from (large tensors are only sampled)"


@dataclass(frozen=True)
class Selection:
    """Which connections train.

    indices      module name -> int32 [O, K], ascending columns per row; a shorter row ends in -1
    k            the largest K of all layers
    fingerprint  of the base they were chosen from (`hub.fingerprint`)
    tied         module name -> the other modules that use the same weight
    rule         by what it was chosen beside the criterion (`training.choose.rule_of`); None: not known
    """

    indices: dict[str, Tensor]
    k: int
    criterion: str
    fingerprint: dict[str, Any]
    tied: dict[str, list[str]] = field(default_factory=dict)
    rule: dict[str, Any] | None = None

    @property
    def connections(self) -> int:
        """How many are chosen in all."""
        return sum(size(index_OK) for index_OK in self.indices.values())

    @property
    def stored_k(self) -> dict[str, int]:
        """Module name -> columns of its index: as many as its longest row has."""
        return {name: index_OK.shape[1] for name, index_OK in self.indices.items()}


def write_selection(path: str | os.PathLike[str], selection: Selection) -> None:
    """Write a selection file, all or nothing. Raises ResourceError."""
    about = {
        "format": format_of(selection) if selection.rule is None else WITH_RULE,
        "k": selection.k,
        "criterion": selection.criterion,
        "fingerprint": selection.fingerprint,
        "tied": selection.tied,
    }
    if selection.rule is not None:
        about["rule"] = selection.rule
    tensors = {f"{module}.indices": index_OK for module, index_OK in selection.indices.items()}
    path = Path(path)
    with files.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_tensors(path, tensors, {"neuroada_selection": json.dumps(about)})


def read_selection(path: str | os.PathLike[str]) -> Selection:
    """A selection file. Raises ModelError for anything that `write_selection` would not have written."""
    where = str(path)
    tensors, metadata = files.read_tensors(path)
    if set(metadata) != {"neuroada_selection"}:
        raise ModelError("is not a selection", where, "write one with `neuroada select`")
    about = _json(metadata["neuroada_selection"], where)
    check_format(about, where, WITH_RULE)
    indices = {}
    for name, index_OK in tensors.items():
        module = name.removesuffix(".indices")
        if module == name:
            raise ModelError(f"holds {name[:80]}, which is not an index", where)
        indices[module] = index_OK
    ruled = about["format"] == WITH_RULE
    if set(about) != (DESCRIPTION | {"rule"} if ruled else DESCRIPTION):
        raise ModelError("has an unexpected description", where)
    if ruled and not _is_rule(about["rule"]):
        raise ModelError("has a broken description (rule)", where)
    return replace(checked_selection(indices, about, where), rule=about.get("rule"))


def checked_selection(indices: dict[str, Tensor], about: Mapping[str, Any], where: str) -> Selection:
    """The checked Selection of indices and the description that came with them."""
    k, criterion, fingerprint, tied = (about.get(n) for n in ("k", "criterion", "fingerprint", "tied"))
    if type(k) is not int or k < 1 or not isinstance(criterion, str) or not isinstance(fingerprint, dict):
        raise ModelError("has a broken description (k, criterion, fingerprint)", where)
    if not _is_tied(tied, indices):
        raise ModelError("has a broken description (tied)", where)
    if not indices:
        raise ModelError("selects nothing", where)
    for module, index_OK in indices.items():
        _check_index(module, index_OK, k, about["format"], where)
    return Selection(indices, k, criterion, fingerprint, tied)  # type: ignore[arg-type]


def _is_rule(rule: Any) -> bool:
    return isinstance(rule, dict) and all(
        type(value) in (int, type(None)) or (isinstance(value, str) and value.isprintable())
        for value in rule.values()
    )


def _is_tied(tied: Any, indices: Mapping[str, Tensor]) -> bool:
    return isinstance(tied, dict) and all(
        module in indices
        and isinstance(others, list)
        and all(
            isinstance(other, str) and MODULE.fullmatch(other) and other not in indices for other in others
        )
        for module, others in tied.items()
    )


def _check_index(module: str, index_OK: Tensor, k: int, number: int, where: str) -> None:
    if not MODULE.fullmatch(module):
        raise ModelError(f"{module[:80]!r} is not a module name", where)
    if index_OK.dtype != torch.int32 or index_OK.ndim != 2 or 0 in index_OK.shape:
        shape = list(index_OK.shape)
        raise ModelError(f"{module}: indices are {index_OK.dtype} {shape}, expected int32 [O, K]", where)
    ragged = number > 1
    if index_OK.shape[1] > k if ragged else index_OK.shape[1] != k:
        raise ModelError(f"{module}: {index_OK.shape[1]} columns per row, its description says k={k}", where)
    lowest = int(index_OK.min())
    if lowest < (-1 if ragged else 0):
        row = first_row(index_OK < (-1 if ragged else 0))
        raise ModelError(f"{module}: row {row} has a negative column", where)
    rising_OK = index_OK[:, 1:] > index_OK[:, :-1]
    if lowest < 0:
        rising_OK |= index_OK[:, 1:] < 0  # nothing may follow the end of a row
    if not rising_OK.all():
        row = first_row(~rising_OK)
        raise ModelError(f"{module}: row {row} repeats a column or is not in ascending order", where)


def first_row(wrong_OK: Tensor) -> int:
    """The first row with a True in it. Slow beside `any` over all: to be asked when something is wrong."""
    return int(wrong_OK.any(dim=1).nonzero()[0])


def format_of(selection: Selection) -> int:
    """The oldest format that can hold a selection, so that older versions read what they can."""
    if selection.fingerprint.get("format") != 1:
        return FORMAT
    plain = all(i.shape[1] == selection.k and int(i.min()) >= 0 for i in selection.indices.values())
    return 1 if plain else 2


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
        if index_OK.shape[1] > inputs:
            raise ModelError(f"{module}: {index_OK.shape[1]} columns per row, the base has {inputs}", where)
        if int(index_OK.max()) >= inputs:
            row = first_row(index_OK >= inputs)
            raise ModelError(f"{module}: row {row} has a column outside 0..{inputs - 1}", where)


def check_ties(selection: Selection, model: nn.Module, where: str) -> None:
    """Whether a loaded model's targets share their weights with those modules that the selection names.

    Raises ModelError: deltas would reach another module, or not reach it.
    """
    found = sharing_modules(model, selection.indices)
    for name, others in found.items():
        if set(others) != set(selection.tied.get(name, ())):
            known, loaded = selection.tied.get(name, ()), others
            here, there = (", ".join(each) or "no other module" for each in (loaded, known))
            raise ModelError(
                f"{name} is loaded as one weight with {here}, but the files hold it as one with {there}",
                where,
                "set model.dtype: fp32, where different numbers stay different",
            )


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = strict_json.parse(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ModelError("has a broken description", where)
    return value


def check_format(about: Mapping[str, Any], where: str, newest: int = FORMAT) -> None:
    """Raises ModelError for a description without a format number or from a newer version."""
    number = about.get("format")
    if type(number) is not int or number < 1:
        raise ModelError("has no format number", where)
    if number > newest:
        raise ModelError(f"has format {number}, this version reads up to {newest}", where, "update neuroada")


def check_base(fingerprint: Mapping[str, Any], base: Path | hub.Base) -> None:
    """Whether a base, or the model in a folder, is the one that `fingerprint` was taken of.

    Of large tensors samples are compared; whoever reads them whole has `check_read`.
    Raises ModelError naming the first difference.
    """
    folder = base if isinstance(base, Path) else base.folder
    number = fingerprint.get("format")
    if type(number) is int and number > hub.FINGERPRINT_FORMAT:
        raise ModelError(f"the base's fingerprint has format {number}", str(folder), "update neuroada")
    found = hub.fingerprint(base) if isinstance(base, Path) else base.fingerprint
    reason = hub.what_differs(fingerprint, found)
    if reason is not None:
        raise _another_base(reason, folder)


def check_read(fingerprint: Mapping[str, Any], name: str, tensor: Tensor, folder: Path) -> bool:
    """Whether a tensor of the base, just read, was hashed when the connections were chosen: then it is the
    same, else a ModelError is raised.
    """
    hashes = fingerprint.get(hub.HASHES)
    if not isinstance(hashes, dict) or name not in hashes:
        return False
    if hashes[name] != hub.hash_of(tensor):
        raise _another_base(f"{name} differs in content", folder)
    return True


def _another_base(reason: str, folder: Path) -> ModelError:
    return ModelError(
        f"is not the base that was selected and trained on: {reason}", str(folder), "name the right one"
    )
