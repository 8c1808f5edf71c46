"""Answers written at every evaluation: they say what the model writes, and change nothing of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_run import (  # noqa: F401
    hashes,
    one_thread,
    stop_in_step,
    tiny_bert_folder,
    tiny_llama_folder,
    tiny_recipe,
)

from neuroada_cli.commands import generate, train
from neuroada_cli.errors import RecipeError, Stopped
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.training.log import read_metrics
from neuroada_cli.training.preflight import check
from neuroada_cli.training.remarks import remarks


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("llama"))


def go(recipe: Recipe, **options: Any) -> train.TrainResult:
    return train.run(recipe, quiet=True, **options)


def samples(run_dir: Path) -> list[dict[str, Any]]:
    return [entry for entry in read_metrics(run_dir / "metrics.jsonl") if entry["kind"] == "sample"]


@pytest.mark.parametrize("how", [{"packing": True, "gradient_checkpointing": True}, {"method": "mask"}])
def test_a_run_with_samples_learns_what_one_without_does(
    how: dict[str, Any], llama_folder: Path, tmp_path: Path
) -> None:
    """Dropout draws from the random state that sampling must leave alone."""
    asked = {"samples": 2, "max_new_tokens": 5}
    plain = go(tiny_recipe(llama_folder, tmp_path / "plain", train=how))
    found = go(tiny_recipe(llama_folder, tmp_path / "asked", train=how, eval=asked))
    assert hashes(found.run_dir / "checkpoint-12") == hashes(plain.run_dir / "checkpoint-12")
    told = samples(found.run_dir)
    assert [entry["step"] for entry in told] == [6, 6, 12, 12]
    assert told[0]["prompt"] == told[2]["prompt"] != told[1]["prompt"]
    assert not samples(plain.run_dir)
    page = (found.run_dir / "report.html").read_text(encoding="utf-8")
    assert "Answers while training" in page
    assert "Answers while training" not in (plain.run_dir / "report.html").read_text(encoding="utf-8")


def test_they_are_what_the_checkpoint_answers(llama_folder: Path, tmp_path: Path) -> None:
    asked = {"samples": 1, "max_new_tokens": 6}
    run_dir = go(tiny_recipe(llama_folder, tmp_path / "run", eval=asked)).run_dir
    told = samples(run_dir)[-1]
    wishes = generate.Wishes(form="text", max_new_tokens=6)
    (found,) = generate.run(str(run_dir / "checkpoint-12"), [told["prompt"]], wishes, quiet=True)
    (answer,) = found.answers.values()
    assert (answer.text, answer.ended) == (told["answer"], told["ended"])


def test_a_resumed_run_tells_each_once(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(llama_folder, tmp_path / "run", eval={"samples": 1, "max_new_tokens": 3})
    with monkeypatch.context() as patch:
        stop_in_step(patch, 8)
        with pytest.raises(Stopped):
            go(recipe)
    go(recipe, resume=True)
    assert [entry["step"] for entry in samples(recipe.run_path)] == [6, 12]


def test_where_there_is_nothing_to_ask_it_is_said(llama_folder: Path, tmp_path: Path) -> None:
    silent = {"data": {"task": "instruct", "train": str(tmp_path / "rows.jsonl")}, "eval": {"samples": 2}}
    (tmp_path / "rows.jsonl").write_text('{"text": "abc def"}\n' * 4)
    said = list(remarks(check(tiny_recipe(llama_folder, tmp_path / "a", **silent), False)))
    assert "eval.samples=2 has no effect: there are no validation rows" in said
    (tmp_path / "rows.jsonl").write_text('{"text": "abc", "label": 1}\n{"text": "def", "label": 0}\n' * 4)
    classes = {"task": "text_classes", "train": str(tmp_path / "rows.jsonl"), "validation_rows": 2}
    bert = tiny_bert_folder(tmp_path / "bert")
    recipe = tiny_recipe(bert, tmp_path / "b", data=classes, eval={"samples": 2})
    assert "eval.samples=2 has no effect: text_classes writes nothing" in list(remarks(check(recipe, False)))
    with pytest.raises(RecipeError, match="samples"):
        tiny_recipe(llama_folder, tmp_path / "c", eval={"samples": -1})
