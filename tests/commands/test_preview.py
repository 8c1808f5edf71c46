"""`--preview N`: what is shown as learnt is what is learnt, with its end, and nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli.commands import train, validate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("model") / "llama")


def rows(folder: Path) -> Path:
    file = folder / "rows.jsonl"
    lines = [{"prompt": f"n{n}:", "completion": f" ok{n}"} for n in range(4)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.mark.parametrize("command", ["train", "validate"])
def test_rows_are_shown_as_they_are_learnt(
    command: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"task": "instruct", "train": str(rows(tmp_path)), "validation": None}
    recipe = tiny_recipe(model, tmp_path / "run", data=data)
    if command == "train":
        train.run(recipe, show_rows=2, quiet=True)
    else:
        validate.run(recipe, show_rows=2)
    shown = capsys.readouterr().out
    assert shown.count("tokens are learnt") == 2
    learnt = [part.partition("\u27e7")[0] for part in shown.split("\u27e6")[1:]]
    assert [text.split("<")[0].strip() for text in learnt] == ["ok0", "ok1"]
    assert all("<" in text for text in learnt)  # the end token
    assert not (tmp_path / "run").exists()
