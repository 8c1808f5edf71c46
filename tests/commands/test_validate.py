"""`validate` calls fine what `train` takes, and refuses in the same words what `train` refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli.commands import train, validate
from neuroada_cli.errors import UserError

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama_folder(tmp_path_factory.mktemp("model") / "bare")
    for file in folder.glob("token*"):
        file.unlink()
    return folder


def refusal(of: Callable[[], object]) -> str | None:
    try:
        of()
    except UserError as error:
        return error.line()
    return None


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({}, None),
        ({"data": {"task": "instruct", "train": "nowhere.json"}}, "nowhere.json"),
        ({"data": {"task": "instruct", "train": "chat.jsonl"}}, "chat template"),
        ({"data": {"task": "instruct", "train": "odd.jsonl"}}, "odd.jsonl"),
        ({"data": {"task": "instruct", "train": "good.jsonl", "data_dir": "nowhere"}}, "nowhere"),
        ({"data": {"limit": 2, "max_length": 8}}, "data.max_length=8"),
        ({"model": {"path": "./nowhere"}}, "no such model folder"),
        ({"model": {"path": "BARE"}}, "tokenizer"),
        ({"select": {"k": 40}}, "choose 1..32"),
        ({"select": {"file": "nowhere.safetensors"}}, "nowhere.safetensors"),
        (
            {"train": {"early_stop": 1}, "data": {"task": "instruct", "train": "good.jsonl"}},
            "validation rows",
        ),
    ],
)
def test_validate_refuses_what_train_refuses(
    sections: dict[str, dict[str, Any]],
    words: str | None,
    model: Path,
    bare: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEUROADA_DATA", raising=False)
    for name, row in (("chat", CHAT), ("odd", {"a": 1}), ("good", {"prompt": "a", "completion": "b"})):
        Path(f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    if sections.get("model", {}).get("path") == "BARE":
        sections = {"model": {"path": str(bare)}}
    recipe = tiny_recipe(model, tmp_path / "run", **{"train": {"max_steps": 1}, **sections})
    said = refusal(lambda: validate.run(recipe))
    assert said == refusal(lambda: train.run(recipe, dry_run=True, quiet=True))
    assert (said is None) if words is None else (said is not None and words in said)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_is_taken_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("x")
    validate.run(tiny_recipe(model, tmp_path / "run"))
    assert "training would be refused: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train": "nowhere.json", "task": "instruct"}, "nowhere.json"),
        ({"data_dir": "nowhere", "task": "boolq", "train": "boolq"}, "nowhere"),
    ],
)
def test_without_the_model_the_rows_are_checked(
    data: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = tiny_recipe(Path("nobody/nothing"), tmp_path / "run", data=data)
    assert words in str(refusal(lambda: validate.run(recipe)))


def test_without_the_model_it_says_that_the_rest_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    validate.run(tiny_recipe(Path("nobody/nothing"), tmp_path / "run"))
    said = capsys.readouterr().out
    assert said.startswith("tiny: fine as far as it can be told without the model")
    assert "not on this machine, so not looked into" in said
