"""An adapter names its base in a way that others can read, and that is found again wherever it is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import pico_llama
from random_adapter import adapter_of
from tiny_tokenizer import SIZE, byte_tokenizer

from neuroada_cli.adapter.base_name import found, look, told
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


SEVERAL = """
import json, sys
from neuroada_cli.cli.app import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as end:
        print(end.code, 'torch' in sys.modules)
"""
GONE, UNKNOWN = "no such model folder", "HF_HUB_OFFLINE is set"


def test_a_base_that_cannot_be_had_is_told_before_torch_is_imported(project: Path) -> None:
    """In one process of its own, whatever the command: importing torch alone takes seconds."""
    config = project / "models" / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 900}))
    for place, name in {"moon": "./models/base", "gone/best": "./models/other", "id": "some-org/x"}.items():
        (project / place).mkdir(parents=True)
        told_by = json.dumps({"base_model_name_or_path": name})
        (project / place / "adapter_config.json").write_text(told_by)
    commands = [["merge", "moon", "out"], ["eval", "gone"], ["generate", "id", "x"], ["chat", "gone"]]
    commands += [
        ["export", "id", "--to", "peft-trainable"],
        ["merge", "gone", "out", "--base", "models/base"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(commands)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "4 False\n" * len(commands), done.stderr
    lines = done.stderr.splitlines()
    said = ["numbered blocks", GONE, UNKNOWN, GONE, UNKNOWN, "numbered blocks"]
    assert [words for words, line in zip(said, lines, strict=True) if words in line] == said
    assert "name it with --base" in lines[1]


def test_what_nobody_can_tell_so_early_is_left_to_the_readers(project: Path) -> None:
    for text in ("{", "[]", "{}", '{"base_model_name_or_path": 5}', '{"base_model_name_or_path": "gpt2"}'):
        (project / "adapter_config.json").write_text(text)
        look(project)
    look(project / "nothing")
