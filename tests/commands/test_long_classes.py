"""Texts longer than what is read of them, where they get a class: counted, told, advised on truly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_pairs import tiny_pairs_folder
from tiny_run import one_thread, tiny_bert_folder, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands import train
from neuroada_cli.errors import UserError
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.training.preflight import check
from neuroada_cli.training.remarks import remarks

TAKES = 256  # tokens, a byte each
LENGTHS = (10, 300, 254, 255, 256, 257, 40, 258, 300, 20)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_rows(rows: list[dict[str, Any]]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(cut_at: int | None = None) -> list[dict[str, Any]]:
    return [
        {"text": (f"{n} " * 150)[: min(size, cut_at or size)], "label": "ab"[n % 2]}
        for n, size in enumerate(LENGTHS)
    ]


def recipe_on(base: Path, **data: Any) -> Recipe:
    about = {"task": "text_classes", "train": "rows.jsonl", "validation": "rows.jsonl", "labels": ["a", "b"]}
    about |= {"limit": None, "validation_limit": None, "max_length": 512}
    return tiny_recipe(base, Path("run"), data=about | data, train={"epochs": 1})


def scored(target: Path, recipe: Recipe | None, out: str) -> tuple[list[Any], list[int], dict[str, Any]]:
    result = evaluate.run(target, recipe, out=out)
    [rows] = result.predictions.values()
    entries: dict[str, dict[str, Any]] = json.loads((Path(out) / "results.json").read_text())
    return [r.prediction for r in rows], [r.row for r in rows if r.cut], next(iter(entries.values()))


@pytest.mark.parametrize("build", [tiny_bert_folder, tiny_llama_folder])
@pytest.mark.parametrize("length", [64, 512])
def test_what_is_cut_is_counted_told_and_scored_as_if_the_text_ended_there(
    build: Any, length: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, most = build(tmp_path / "base"), min(length, TAKES)
    expected = [n for n, size in enumerate(LENGTHS) if size > most]
    write_rows(texts())
    classes, cut, entry = scored(base, recipe_on(base, max_length=length), "long")
    shown = " ".join(capsys.readouterr().out.split())
    what = f"data.max_length={length}" if length < TAKES else f"the {TAKES} tokens of the model"
    assert f"{len(expected)} of {len(LENGTHS)} rows are longer than {what}, and scored without" in shown
    assert (cut, entry["cut"], entry["n"], entry["max_length"]) == (expected, len(cut), len(LENGTHS), most)
    write_rows(texts(cut_at=most))
    short, none, _ = scored(base, recipe_on(base, max_length=length), "short")
    assert (short, none) == (classes, [])
    assert "are longer than" not in capsys.readouterr().out


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_what_trained_on_long_rows_scores_all_of_them(too_long: str, tmp_path: Path) -> None:
    write_rows(texts())
    train.run(recipe_on(tiny_bert_folder(tmp_path / "base"), too_long=too_long), quiet=True)
    _, cut, entry = scored(Path("run"), None, "out")
    assert cut == [n for n, size in enumerate(LENGTHS) if size > TAKES]
    assert entry["n"] == len(LENGTHS)


def test_whole_texts_are_scored_as_far_as_the_model_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_llama_folder(tmp_path / "base")
    own = {"task": "instruct", "labels": []}
    write_rows(texts())
    _, cut, entry = scored(base, recipe_on(base, **own, columns={"text": "text"}), "out")
    assert cut == [n for n, size in enumerate(LENGTHS) if size + 1 > TAKES]
    assert entry["max_length"] == TAKES
    assert f"longer than the {TAKES} tokens of the model" in " ".join(capsys.readouterr().out.split())


ROWS = {
    "text_classes": {"text": "x" * 300, "label": "a"},
    "text": {"text": "x" * 300},
    "pairs": {"prompt": "x" * 100, "completion": "y" * 200},
}


@pytest.mark.parametrize("kind", [*ROWS, "encoder-decoder"])
def test_the_advice_before_training_changes_what_it_says(kind: str, tmp_path: Path) -> None:
    """Each way that is named is taken: fewer rows lose their end. What would change nothing is not named."""
    row = ROWS.get(kind, {"prompt": "ask", "completion": "y" * 300})
    write_rows([row, row, {key: value[:9] for key, value in row.items()}])
    own = {"task": "instruct", "labels": []} if kind != "text_classes" else {"labels": ["a", "b"]}
    if kind == "encoder-decoder":
        base = tiny_pairs_folder(tmp_path / "base", "bart")
    else:
        base = (tiny_bert_folder if kind == "text_classes" else tiny_llama_folder)(tmp_path / "base")

    def told(too_long: str) -> list[str]:
        recipe = recipe_on(base, **own, max_length=TAKES, too_long=too_long)
        found = remarks(check(recipe, overwrite=False))
        return [
            line for line in found if line.startswith(f"cut at {TAKES} tokens") and "validation" not in line
        ]

    [line] = told("refuse")
    advised = set(re.findall(r"\b(cut|drop) (?:takes|leaves)", line))
    for way in ("cut", "drop"):
        try:
            better = not told(way)
        except UserError:
            better = False
        assert (way in advised) == better, (way, line)
