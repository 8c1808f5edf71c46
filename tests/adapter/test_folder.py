"""Adapters: what is written comes back, and nothing else is let in."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_adapter import (
    CONFIG,
    MODULES,
    TENSORS,
    change_config,
    change_tensors,
    reseal,
    tiny_adapter,
    write,
)
from tiny_tokenizer import byte_tokenizer

from neuroada_cli import files
from neuroada_cli.adapter.folder import Adapter, read_adapter, write_adapter
from neuroada_cli.errors import ModelError, NumericsError

PREFIX = "base_model.model."
FIRST = PREFIX + MODULES[0]
INDICES, VALUES = FIRST + ".neuroada_indices", FIRST + ".neuroada_values"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "adapter")


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_adapter(folder)
    assert caught.value.exit_code == 4
    line = caught.value.line()
    assert str(folder) in line
    assert len(line) < len(str(folder)) + 500
    return line


def equal(one: Adapter, other: Adapter) -> bool:
    def tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
        return adapter.selection.indices | {f"{n}+": t for n, t in adapter.deltas.items()} | adapter.whole

    ours, theirs = tensors(one), tensors(other)
    plain = [dataclasses.replace(a, deltas={}, whole={}, selection=None) for a in (one, other)]  # type: ignore[arg-type]
    described = [dataclasses.replace(a.selection, indices={}) for a in (one, other)]
    return (
        plain[0] == plain[1]
        and described[0] == described[1]
        and ours.keys() == theirs.keys()
        and all(ours[n].dtype == theirs[n].dtype and torch.equal(ours[n], theirs[n]) for n in ours)
    )


def test_what_is_written_comes_back(folder: Path) -> None:
    assert equal(read_adapter(folder), tiny_adapter())
    assert set(files.verify_folder(folder)["files"]) == {CONFIG, TENSORS, "recipe.yaml"}
    config = json.loads((folder / CONFIG).read_text())
    assert config["peft_type"] == "NEUROADA"
    assert config["modules_to_save"] == ["score"]
    assert "2 trained connections" in (folder / "README.md").read_text()


def test_the_model_card_is_the_owners(folder: Path) -> None:
    (folder / "README.md").write_text("my words")
    assert equal(read_adapter(folder), tiny_adapter())


def test_values_that_are_not_numbers_never_replace_good_ones(folder: Path) -> None:
    bad = tiny_adapter()
    bad.deltas[MODULES[1]][2, 1] = float("nan")
    with (
        pytest.raises(NumericsError, match=f"{MODULES[1]} holds NaN") as caught,
        files.atomic_folder(folder, overwrite=True) as temporary,
    ):
        write_adapter(temporary, bad)
    assert caught.value.exit_code == 5
    assert equal(read_adapter(folder), tiny_adapter())


# ---------------------------------------------------------------------------------------------------
# Hostile tensors, with a manifest that agrees


def put(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.__setitem__(name, value)


def poke(name: str, row: int, column: int, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors[name].__setitem__((row, column), value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (poke(INDICES, 2, 0, -1), f"{MODULES[0]}: row 2 has a negative column"),
        (lambda t: t[INDICES][3].copy_(torch.tensor([5, 5])), f"{MODULES[0]}: row 3 repeats a column"),
        (
            lambda t: t[INDICES][1].copy_(torch.tensor([5, 4])),
            f"{MODULES[0]}: row 1 repeats a column or is",
        ),
        (poke(VALUES, 1, 1, float("nan")), f"{MODULES[0]}: row 1 holds NaN or infinity"),
        (poke(VALUES, 0, 0, float("-inf")), f"{MODULES[0]}: row 0 holds NaN or infinity"),
        (lambda t: put(INDICES, t[INDICES].long())(t), f"{MODULES[0]}: indices are torch.int64"),
        (lambda t: put(VALUES, t[VALUES].double())(t), f"{MODULES[0]}: values are torch.float64 [4, 2]"),
        (lambda t: put(VALUES, t[VALUES][:3])(t), f"{MODULES[0]}: values are torch.float32 [3, 2]"),
        (lambda t: put(INDICES, t[INDICES][:, 0].clone())(t), f"{MODULES[0]}: indices are torch.int32 [4]"),
        (lambda t: put(INDICES, t[INDICES][:0])(t), f"{MODULES[0]}: indices are torch.int32 [0, 2]"),
        (lambda t: put(INDICES, t[INDICES][:, :1])(t), f"{MODULES[0]}: 1 columns per row"),
        (lambda t: t.pop(INDICES), f"{MODULES[0]} is not once in each"),
        (lambda t: t.pop(VALUES), f"{MODULES[0]} is not once in each"),
        (lambda t: t.clear(), "is not once in each"),
        (lambda t: put(PREFIX + "m.neuroada_values", t[VALUES])(t), "m is not once in each"),
        (put(PREFIX + "score.weight", torch.tensor([float("inf")])), "score.weight holds NaN or infinity"),
        (put(PREFIX + "score.weight", torch.tensor([1])), "score.weight: values are torch.int64"),
        (
            put(PREFIX + "score.weight", torch.ones(2).to(torch.float8_e5m2)),
            "score.weight: values are torch.float8_e5m2",
        ),
        (put(FIRST + ".weight", torch.ones(4, 8)), "modules_to_save does not name"),
        (lambda t: t.pop(PREFIX + "score.weight") + t.pop(PREFIX + "score.bias")[0], "modules_to_save"),
        (put("score.weight", torch.ones(1)), "'score.weight' is not a tensor of an adapter"),
        (put(PREFIX + "../weight", torch.ones(1)), "is not a tensor of an adapter"),
        (put(PREFIX + "a b", torch.ones(1)), "is not a tensor of an adapter"),
        (put(PREFIX + "a\n", torch.ones(1)), "is not a tensor of an adapter"),
        (put(PREFIX + "\x1b[31m" + "x" * 10_000, torch.ones(1)), "is not a tensor of an adapter"),
        (put(PREFIX + ".neuroada_values", torch.ones(1)), "is not once in each"),
    ],
)
def test_hostile_tensors_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    change_tensors(folder, change)
    line = refusal(folder)
    assert message in line
    assert "\x1b" not in line


def test_a_value_behind_the_end_of_a_shorter_row_is_refused(tmp_path: Path) -> None:
    """A row that ends in -1: a value there would land on the last column, which is frozen."""
    adapter = tiny_adapter()
    adapter.selection.fingerprint["format"] = 2
    adapter.selection.indices[MODULES[0]][2] = torch.tensor([5, -1])
    adapter.deltas[MODULES[0]][2, 1] = 0.0
    with files.atomic_folder(tmp_path / "adapter") as temporary:
        write_adapter(temporary, adapter)
    read_adapter(tmp_path / "adapter")
    change_tensors(tmp_path / "adapter", poke(VALUES, 2, 1, 0.5))
    assert f"{MODULES[0]}: row 2 has a value without a column" in refusal(tmp_path / "adapter")


def test_a_weight_is_either_adapted_or_whole(folder: Path) -> None:
    change_tensors(folder, put(FIRST + ".weight", torch.ones(4, 8)))
    change_config(folder, lambda c: c.update(modules_to_save=sorted([MODULES[0], "score"])))
    assert f"{MODULES[0]}.weight is both adapted and trained whole" in refusal(folder)


def test_foreign_metadata_is_refused(folder: Path) -> None:
    tensors, _ = files.read_tensors(folder / TENSORS)
    files.write_tensors(folder / TENSORS, tensors, {"format": "pt", "run": "code"})
    reseal(folder)
    assert "unexpected metadata" in refusal(folder)


# ---------------------------------------------------------------------------------------------------
# Hostile configs, with a manifest that agrees


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(peft_type="LORA"), "is an adapter of type LORA, not NEUROADA"),
        (lambda c: c.update(peft_type="x" * 9999), "is an adapter of type xxx"),
        (lambda c: c.update(format=4, other=1), "has format 4, this version reads up to 3; update neuroada"),
        (lambda c: c.update(format=True), "has no format number"),
        (lambda c: c.pop("format"), "has no format number"),
        (lambda c: c.pop("revision"), "revision is missing"),
        (lambda c: c.update(auto_map={"AutoModel": "x.py"}), "auto_map is not a key"),
        (lambda c: c.update({"\x1b]0;x\x07" * 999: 1}), "is not a key"),
        (lambda c: c.update(task_type=["CAUSAL_LM"]), "task_type is ['CAUSAL_LM'], which cannot be"),
        (lambda c: c.update(task_type="TOKEN_CLS"), "task_type is 'TOKEN_CLS'"),
        (lambda c: c.update(base_model_name_or_path=None), "base_model_name_or_path is None"),
        (lambda c: c.update(base_model_name_or_path=""), "base_model_name_or_path is ''"),
        (lambda c: c.update(base_model_name_or_path="a\0b"), "base_model_name_or_path is"),
        (lambda c: c.update(base_model_name_or_path="x" * 5000), "base_model_name_or_path is"),
        (lambda c: c.update(base_model_name_or_path="\ud800"), "half of a surrogate pair"),
        (lambda c: c.update(revision=1), "revision is 1"),
        (lambda c: c.update(inference_mode="yes"), "inference_mode is 'yes'"),
        (lambda c: c.update(settings=[]), "settings is []"),
        (lambda c: c["settings"].update(num_labels=10**9), "settings.num_labels is 1000000000"),
        (lambda c: c["settings"].update(num_labels="2"), "settings.num_labels is '2'"),
        (lambda c: c["settings"].update(dtype="float"), "settings.dtype is 'float'"),
        (lambda c: c["settings"].update(dtype=[]), "settings.dtype is []"),
        (lambda c: c["settings"].update(labels="ab"), "settings.labels is 'ab'"),
        (lambda c: c["settings"].update(quantization=4), "settings.quantization is 4"),
        (lambda c: c["settings"].update(pad_token_id=-1), "settings.pad_token_id is -1"),
        (lambda c: c["settings"].update(method="evil"), "settings.method is 'evil'"),
        (lambda c: c["settings"].update(method=None), "settings.method is None"),
        (lambda c: c["settings"].update(auto_map="x.Y"), "settings.auto_map is not a key"),
        (lambda c: c["settings"].update({"\x1b]0;x\x07" * 99: 1}), "is not a key"),
        (lambda c: c["settings"].update(peer=[1]), "settings.peer is [1]"),
        (lambda c: c["settings"].update(peer={"rank": True}), "settings.peer is {'rank': True}"),
        (lambda c: c["settings"].update(peer={"rank": "8"}), "settings.peer is {'rank': '8'}"),
        (lambda c: c["settings"].update(peer={"rank": 0}), "settings.peer is {'rank': 0}"),
        (lambda c: c["settings"].update(peer={"ranks": 8}), "settings.peer is {'ranks': 8}"),
        (lambda c: c["settings"].update(peer={"positions": 2**40}), "settings.peer is {'positions'"),
        (lambda c: c["settings"].update(method="head"), "has deltas, which head does not train"),
        (lambda c: c["settings"].update(method="mask", quantization="nf4"), "mask does not train on a quan"),
        (lambda c: c.update(target_modules="all"), "target_modules is 'all'"),
        (lambda c: c.update(target_modules=[[]]), "target_modules is [[]]"),
        (lambda c: c["target_modules"].pop(), "is not once in each"),
        (lambda c: c["target_modules"].append(MODULES[0]), "is not once in each"),
        (lambda c: c["target_modules"].append("lm_head"), "lm_head is not once in each"),
        (lambda c: c.update(modules_to_save=["lm_head"]), "modules_to_save does not name"),
        (lambda c: c.update(k=0), "broken description (k"),
        (lambda c: c.update(k=True), "broken description (k"),
        (lambda c: c.update(k=3), f"{MODULES[0]}: 2 columns per row, its description says k=3"),
        (lambda c: c.update(criterion=None), "broken description (k"),
        (lambda c: c.update(fingerprint="same"), "broken description (k"),
        (lambda c: c.update(tied=[]), "broken description (tied)"),
        (lambda c: c.update(tied={"lm_head": []}), "broken description (tied)"),
        (lambda c: c.update(tied={MODULES[0]: [1]}), "broken description (tied)"),
        (lambda c: c.update(tied={MODULES[0]: [[]]}), "broken description (tied)"),
        (lambda c: c.update(tied={MODULES[0]: [MODULES[1]]}), "broken description (tied)"),
        (lambda c: c.update(tied={MODULES[0]: ["../x"]}), "broken description (tied)"),
    ],
)
def test_a_hostile_config_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_config(folder, change)
    line = refusal(folder)
    assert message in line
    assert line.isprintable()


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b'"NEUROADA"', b'{"k": 1, "k": 2}', b"[" * 9999])
def test_a_config_that_is_none_is_refused(folder: Path, text: bytes) -> None:
    (folder / CONFIG).write_bytes(text)
    reseal(folder)
    assert CONFIG in refusal(folder)


def test_a_manifest_that_leaves_out_what_is_read_is_refused(folder: Path) -> None:
    for name in (CONFIG, TENSORS):
        manifest = json.loads((folder / files.MANIFEST).read_text())
        del manifest["files"][name]
        (folder / files.MANIFEST).write_text(json.dumps(manifest))
        assert f"does not list {name}" in refusal(folder)
        manifest["files"][name] = {"bytes": 0, "sha256": "0" * 64}
        (folder / files.MANIFEST).write_text(json.dumps(manifest))
        reseal(folder)


def test_missing_and_linked_files_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / TENSORS, tmp_path / TENSORS)
    assert f"{TENSORS} is missing" in refusal(folder)
    (folder / TENSORS).symlink_to(tmp_path / TENSORS)
    assert f"{TENSORS} is a link that leaves the folder" in refusal(folder)
    (folder / CONFIG).unlink()
    assert "is not an adapter folder" in refusal(folder)


def test_the_card_names_the_library_that_can_load_it(tmp_path: Path) -> None:
    """Stock PEFT answers the type with a bare KeyError, so the hub's snippet must not send anybody there."""
    card = (write(tmp_path / "adapter") / "README.md").read_text(encoding="utf-8")
    assert "library_name: neuroada-cli\n" in card


def test_what_was_left_out_stands_on_the_card_and_comes_back(tmp_path: Path) -> None:
    line = "61 % of the parameters are matrices outside linear layers"
    made = tiny_adapter()
    written = dataclasses.replace(made, settings=made.settings | {"left_out": [line]})
    with files.atomic_folder(tmp_path / "adapter") as temporary:
        write_adapter(temporary, written)
    assert f"{line}.\n" in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert read_adapter(tmp_path / "adapter").settings["left_out"] == [line]
    poked = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    poked["settings"]["left_out"] = ["two\nlines"]
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps(poked))
    reseal(tmp_path / "adapter")
    assert "settings.left_out" in refusal(tmp_path / "adapter")


@pytest.mark.parametrize(
    "call", [{"truncation": True, "max_length": 3}, {"padding": "max_length", "max_length": 99}]
)
def test_a_saved_tokenizer_keeps_no_setting_of_a_call(tmp_path: Path, call: dict[str, Any]) -> None:
    """Who reads tokenizer.json without transformers would cut or fill up every text."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    found = []
    for name in ("before", "after"):
        with files.atomic_folder(tmp_path / name) as temporary:
            write_adapter(temporary, tiny_adapter(), tokenizer)
        found.append((tmp_path / name / "tokenizer.json").read_bytes())
        tokenizer("a row of some length", **call)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "vocab.txt", "spiece.model"])
def test_what_was_laid_beside_an_adapter_and_would_be_read_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("{}", encoding="utf-8")
    assert f"does not list {name}" in refusal(folder)
