"""Selections: what is written comes back, and nothing else is let in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny_adapter import (
    MODULES,
    tiny_selection,
)

from neuroada_cli import files
from neuroada_cli.errors import ModelError, ResourceError
from neuroada_cli.selection.file import check_shapes, read_selection, write_selection


def test_a_selection_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "selection.safetensors"
    write_selection(file, tiny_selection())
    read = read_selection(file)
    assert dataclasses.replace(read, indices={}) == dataclasses.replace(tiny_selection(), indices={})
    assert all(torch.equal(read.indices[name], tiny_selection().indices[name]) for name in MODULES)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="a part of the path is a file"):
        write_selection(tmp_path / "file" / "selection.safetensors", tiny_selection())


GOOD = {"format": 1, "k": 2, "criterion": "magnitude", "fingerprint": {}, "tied": {}}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("{", "broken description"), ("[]", "broken description"), ('{"k":1,"k":2}', "broken description"),
        ("[" * 99_999, "broken description"), (GOOD | {"format": 9}, "has format 9"),
        (GOOD | {"more": 1}, "unexpected description"), (GOOD | {"k": 1}, "2 columns per row"),
        (GOOD | {"k": -1}, "broken description"), (GOOD | {"tied": {"x": ["y"]}}, "broken description"),
    ],
)  # fmt: skip
def test_a_hostile_selection_is_refused(tmp_path: Path, about: object, message: str) -> None:
    file = tmp_path / "selection.safetensors"
    text = about if isinstance(about, str) else json.dumps(about)
    files.write_tensors(
        file, {"a.indices": tiny_selection().indices[MODULES[0]]}, {"neuroada_selection": text}
    )
    with pytest.raises(ModelError, match=message) as caught:
        read_selection(file)
    assert len(caught.value.line()) < len(str(file)) + 200


def test_other_files_are_no_selections(tmp_path: Path) -> None:
    file = tmp_path / "selection.safetensors"
    index_OK = tiny_selection().indices[MODULES[0]]
    about = {"neuroada_selection": json.dumps(GOOD)}
    for tensors, metadata, message in [
        ({"a.indices": index_OK}, {"format": "pt"}, "is not a selection"),
        (
            {"a.weight": index_OK},
            {"neuroada_selection": json.dumps(GOOD)},
            r"a\.weight, which is not an index",
        ),
        ({}, about, "selects nothing"),
        ({".indices": index_OK}, about, "'' is not a module name"),
        ({"a\n.indices": index_OK}, about, "is not a module name"),
    ]:
        files.write_tensors(file, tensors, metadata)
        with pytest.raises(ModelError, match=message):
            read_selection(file)


def test_shapes_are_compared_with_the_model() -> None:
    selection = tiny_selection()
    check_shapes(selection, dict.fromkeys(MODULES, (4, 8)), "x")
    highest = int(selection.indices[MODULES[0]].max())
    row = int((selection.indices[MODULES[0]] >= highest).any(dim=1).nonzero()[0])
    for shapes, message in [
        ({MODULES[0]: (4, 8)}, f"{MODULES[1]} is not a linear layer"),
        (dict.fromkeys(MODULES, (5, 8)), f"{MODULES[0]}: 4 rows, the base has 5"),
        (
            dict.fromkeys(MODULES, (4, highest)),
            f"{MODULES[0]}: row {row} has a column outside 0..",
        ),
    ]:
        with pytest.raises(ModelError, match=message):
            check_shapes(selection, shapes, "x")
