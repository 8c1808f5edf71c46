"""Own rows without a recipe: what does not fit the model is left out and counted, the rest is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe, tiny_tokenizer  # noqa: F401

from neuroada_cli.cli.options import OWN_ROWS
from neuroada_cli.commands import train
from neuroada_cli.errors import DataError
from neuroada_cli.hub.reader import Reader
from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.training.rows import prepare


def said(tmp_path: Path, rows: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    model = tiny_llama_folder(tmp_path / "model", max_position_embeddings=64)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": "say", "completion": row}) + "\n" for row in rows))
    overrides = [f"model.path={model}", f"data.train={file}", f"run_dir={tmp_path / 'run'}", "device=cpu"]
    train.run(load_recipe(OWN_ROWS, overrides), show_rows=1)
    told = capsys.readouterr()
    return " ".join((told.out + told.err).split())


def test_rows_beyond_the_models_limit_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = said(tmp_path, ["long " * 30] + ["short"] * 20, capsys)
    assert "longer than 64 tokens and left out: 1 of 19 rows" in told
    assert "data.too_long: cut keeps what the model takes" in told


def test_where_all_are_longer_there_is_nothing_to_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"all 19 rows are longer than data.max_length=64"):
        said(tmp_path, ["long " * 30] * 20, capsys)


def test_a_column_for_readers_is_not_said_to_be_unused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path)
    assert prepare(recipe.data, get_task("due_dates"), Reader(tiny_tokenizer()), 1).notes == ()
