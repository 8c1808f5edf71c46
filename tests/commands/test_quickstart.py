"""`quickstart`: it replaces a former tour only, and holds its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli import files
from neuroada_cli.commands import quickstart, train
from neuroada_cli.errors import OutputError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_of_ones_own_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    recipe = tiny_recipe(tiny_llama_folder(tmp_path / "model"), tmp_path / "run", train={"max_steps": 1})
    train.run(recipe, quiet=True)
    before = contents(tmp_path / "run")
    with pytest.raises(OutputError, match=r"something else than a tour \(best, checkpoint-1, .*--out"):
        quickstart.run(recipe, overwrite=overwrite)
    assert contents(tmp_path / "run") == before


def test_a_second_tour_beside_a_running_one_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "model", tmp_path / "run")
    with files.Lock(tmp_path / "run"), pytest.raises(OutputError, match="process"):
        quickstart.run(recipe, overwrite=True)
    assert not (tmp_path / "run").exists()


def test_a_former_tour_goes_only_when_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "run" / "train").mkdir(parents=True)
    with pytest.raises(OutputError, match="is not empty; add --overwrite"):
        quickstart.run(tiny_recipe(tmp_path / "model", tmp_path / "run"))


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        quickstart.run(tiny_recipe(tmp_path / "model", tmp_path / "run"), overwrite=True)
