"""An adapter names its base in a way that others can read, and that is found again wherever it is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import pico_llama
from random_adapter import adapter_of
from tiny_tokenizer import SIZE, byte_tokenizer

from neuroada_cli.adapter.base_name import found, told
from neuroada_cli.adapter.load import load
from neuroada_cli.commands import eval as command
from neuroada_cli.errors import ModelError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/base, and the working directory beside it."""
    folder = tmp_path / "project"
    pico_llama(vocabulary=SIZE).save_pretrained(folder / "models" / "base")
    byte_tokenizer().save_pretrained(folder / "models" / "base")
    monkeypatch.chdir(folder)
    return folder


def test_a_folder_is_named_by_the_way_to_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(str(project / "models" / "base")) == ("./models/base", None)
    assert told("models/base", "main") == ("./models/base", "main")
    assert told("owner/name", "main") == ("owner/name", "main")
    (project / "deep").mkdir()
    monkeypatch.chdir(project / "deep")
    assert told("../models/base") == ("./../models/base", None)


def test_a_snapshot_of_the_hubs_cache_is_named_by_its_id(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    snapshot = project / "cache" / "models--owner--some-name" / "snapshots" / "12ab"
    snapshot.mkdir(parents=True)
    assert told(str(snapshot))[0].startswith("./cache/")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(project / "cache"))
    assert told(str(snapshot)) == ("owner/some-name", "12ab")


def test_it_is_found_from_anywhere_beside_the_adapter(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_of(project / "models" / "base", project / "runs" / "x")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = told(str(project / "models" / "base"))[0]
    (adapter / "manifest.json").unlink()
    config["peft_version"] = "0.21.0"  # a folder without a manifest
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    moved = shutil.move(project, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert load(str(Path(moved) / "runs" / "x")).adapter is not None, "the project was moved as a whole"
    alone = shutil.copytree(Path(moved) / "runs" / "x", tmp_path / "alone" / "x")
    with pytest.raises(ModelError, match=r"\./models/base: no such model folder"):
        load(str(alone))
    text = tmp_path / "text.txt"
    text.write_text("Some text.\n")
    base = str(Path(moved) / "models" / "base")
    scored = command.run(str(alone), forgetting=str(text), base=base, quiet=True)
    assert scored.results["forgetting"].n == 1


def test_the_way_out_of_the_working_directory_is_found_from_everywhere(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    name, _ = told(str(project / "models" / "base"))
    assert name == "./../project/models/base"
    monkeypatch.chdir("/")
    assert found(name, tmp_path / "elsewhere" / "runs") == str(project / "models" / "base")
    assert found("owner/name", tmp_path) == "owner/name"
