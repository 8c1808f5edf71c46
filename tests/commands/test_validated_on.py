"""Scores on rows that training was validated on: GLUE's halves, however a set is named, and what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import one_thread, tiny_bert_folder, tiny_llama_folder, tiny_recipe, tiny_rte_folder  # noqa: F401

from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands import train
from neuroada_cli.data import sources
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.tasks.training_set import validation_set

NONE_CHOSE = "the validation rows that chose no checkpoint"


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tiny_rte_folder(tmp_path / "sets")
    monkeypatch.setenv("NEUROADA_DATA", str(folder))
    monkeypatch.chdir(tmp_path)
    (folder / "boolq").mkdir()
    for name, count in (("boolq/test", 6), ("boolq/train", 9), ("mine", 4)):
        rows = [{"instruction": f"{name} {n}?", "answer": "true"} for n in range(count)]
        if name == "mine":  # two of its own, and two of the test rows
            rows[2:] = [{"instruction": f"boolq/test {n}?", "answer": "true"} for n in range(2)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def glue(tmp_path: Path, **more: Any) -> Recipe:
    if not (tmp_path / "bert").exists():
        tiny_bert_folder(tmp_path / "bert")
    about = {"task": "rte", "validation_limit": None, "limit": 8} | more
    return tiny_recipe(tmp_path / "bert", tmp_path / "run", data=about, train={"epochs": 1})


def scored(tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> tuple[str, set[int], str]:
    """(which rows were scored in words, their numbers, what was said)."""
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    train.run(recipe, quiet=True)
    capsys.readouterr()
    evaluate.run(tmp_path / "run", max_new_tokens=2)
    folder, task = tmp_path / "run/eval", recipe.data.task
    part = json.loads((folder / "results.json").read_text())[task]["data"]["rows"]
    lines = (folder / f"predictions/{task}.jsonl").read_text().splitlines()
    said = " ".join(capsys.readouterr().out.split())
    return part, {json.loads(line)["row"] for line in lines}, said


def test_a_set_that_is_written_out_chooses_with_the_same_rows(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its name, its file, or a copy of it: the rows that choose and those that are scored never meet."""
    shutil.copy(data / "glue_rte/validation.jsonl", tmp_path / "copy.jsonl")
    names = [None, "glue_rte:validation", "glue_rte", str(data / "glue_rte/validation.jsonl"), "copy.jsonl"]
    found = []
    for name in names:
        recipe = glue(tmp_path, validation=name)
        chose = validation_set(recipe.data, get_task("rte"))
        assert chose is not None
        part, rows, said = scored(tmp_path, recipe, capsys)
        assert part == NONE_CHOSE
        assert not rows & {*chose[1]}
        assert rows | {*chose[1]} == {*range(16)}
        assert "training was validated on" not in said
        found.append((rows, [*chose[1]]))
    assert all(each == found[0] for each in found)


def test_another_set_chooses_with_all_of_its_rows(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of which some may be scored, too."""
    lines = (data / "glue_rte/validation.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "own.jsonl").write_text("".join(lines[:15]))
    part, rows, said = scored(tmp_path, glue(tmp_path, validation="own.jsonl"), capsys)
    both = len(rows & {*range(15)})
    assert part == f"half of the validation rows, {both} of which training was validated on"
    assert f"rte: training was validated on {both} of {len(rows)} rows, which may flatter the score" in said


@pytest.mark.parametrize(
    ("validation", "count"), [("boolq:test", 6), ("mine.jsonl", 2), (None, 0), ("boolq:train", 0)]
)
def test_test_rows_that_training_was_validated_on_are_counted(
    tmp_path: Path, data: Path, validation: str | None, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_llama_folder(tmp_path / "base")
    if validation == "mine.jsonl":
        validation = str(data / validation)
    about = {"task": "boolq", "validation": validation, "limit": None, "validation_limit": None}
    recipe = tiny_recipe(tmp_path / "base", tmp_path / "run", data=about, train={"epochs": 1})
    part, rows, said = scored(tmp_path, recipe, capsys)
    assert len(rows) == 6
    assert part == (f"all rows, {count} of which training was validated on" if count else "all rows")
    assert ("training was validated on" in said) == bool(count)
    evaluate.run(tmp_path / "base", recipe, out="base", max_new_tokens=2, quiet=True)
    [base] = json.loads(Path("base/results.json").read_text()).values()
    assert base["data"]["rows"] == "all rows", "nothing was validated on anything"


def test_a_validation_set_that_is_not_here_is_told(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "label": 1}\n')
    recipe = glue(tmp_path, validation="own.jsonl")
    train.run(recipe, quiet=True)
    (tmp_path / "own.jsonl").unlink()
    evaluate.run(tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "which rows training was validated on is not known: " in said
    assert "which rows were trained on is not known" not in said
    assert '"half of the validation rows"' in (tmp_path / "run/eval/results.json").read_text()
    assert (
        sources.load_rows("glue_rte", "validation").sha256 in (tmp_path / "run/eval/results.json").read_text()
    )
