"""Which adapter a path means, and whether a model is its base."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from tiny_adapter import (
    write,
)

from neuroada_cli import files, hub
from neuroada_cli.adapter.find import find_adapter
from neuroada_cli.errors import ModelError
from neuroada_cli.selection.file import check_base


def test_an_adapter_is_found_in_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number in (9, 10):
        write(run / f"checkpoint-{number}")
    assert find_adapter(run) == run / "checkpoint-10"
    files.atomic_link(run / "last", "checkpoint-10")
    assert find_adapter(run) == run / "checkpoint-10"
    files.atomic_link(run / "best", "checkpoint-9")
    assert find_adapter(run) == run / "checkpoint-9"
    assert find_adapter(run / "checkpoint-10") == run / "checkpoint-10"
    (run / "checkpoint-9" / files.MANIFEST).unlink()  # not complete: the next one
    assert find_adapter(run) == run / "checkpoint-10"


def test_a_link_named_like_a_checkpoint_is_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run / "checkpoint-9")
    write(tmp_path / "elsewhere")
    (run / "checkpoint-11").symlink_to(tmp_path / "elsewhere")
    assert find_adapter(run) == run / "checkpoint-9"


def test_what_is_no_adapter_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, message in [
        ("absent", "no such folder"), ("file", "is a file"), ("model", "is a model, not an adapter"),
        ("empty", "holds no adapter"), ("x" * 300, "no such folder"), ("x\0", "no such folder"),
    ]:  # fmt: skip
        with pytest.raises(ModelError, match=message):
            find_adapter(tmp_path / name)


def test_a_folder_of_runs_names_them(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / "runs" / f"run{number}" / "checkpoint-3")
    (tmp_path / "runs" / "notes").mkdir()
    with pytest.raises(ModelError, match=r"holds no adapter, but runs.*run0, run1, run2, \.\.\.$"):
        find_adapter(tmp_path / "runs")


def test_a_link_of_a_run_stays_in_the_run(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best").symlink_to(elsewhere)
    with pytest.raises(ModelError, match="best is a link that leaves the folder"):
        find_adapter(tmp_path / "run")


def test_a_wrong_base_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    model = pico_llama()
    model.save_pretrained(tmp_path / "base")
    fingerprint = hub.fingerprint(tmp_path / "base")
    check_base(fingerprint, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    wider = fingerprint["config"] | {"hidden_size": 64}
    for change, message in [
        (fingerprint | {"content": "0" * 64}, "its weights differ in content"),
        (fingerprint | {"layout": "0" * 64}, "its tensors have other names, shapes or data types"),
        (
            fingerprint | {"config": wider},
            "its hidden_size is 32, it was 64",
        ),
        (fingerprint | {"config": {"model_type": "x" * 10**6}}, "is not the base"),
        (fingerprint | {"config": []}, "is not the base"),
        ({}, "is not the base"),
    ]:
        with pytest.raises(ModelError, match=message) as caught:
            check_base(change, tmp_path / "base")
        assert len(caught.value.line()) < len(str(config)) + 400


def test_one_changed_weight_makes_another_base(tmp_path: Path) -> None:
    model = pico_llama()
    model.save_pretrained(tmp_path / "base")
    fingerprint = hub.fingerprint(tmp_path / "base")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="its weights differ in content"):
        check_base(fingerprint, tmp_path / "base")
    assert os.listdir(tmp_path) == ["base"]
