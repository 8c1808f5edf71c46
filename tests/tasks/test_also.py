"""Several sources: each read in its own form, shown as often as its weight says, and known to `eval`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_llama_folder, tiny_recipe

from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.evaluation.rows import learnt_by
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks.leakage import normalise
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.tasks.training_set import training_set
from neuroada_cli.training.preflight import check

TASK = get_task("instruct")


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, str, str]:
    first = write(tmp_path / "a.jsonl", [{"instruction": f"a{n}", "output": "x"} for n in range(10)])
    second = write(tmp_path / "b.jsonl", [{"question": f"b{n}", "answer": "y"} for n in range(8)])
    third = write(tmp_path / "c.jsonl", [{"text": f"c{n}"} for n in range(4)])
    return first, second, third


def section(sources: tuple[str, str, str], weights: tuple[float, float], **more: Any) -> DataSection:
    also = dict(zip(sources[1:], weights, strict=True))
    return DataSection(task="instruct", train=sources[0], also=also, **more)


def test_a_weight_is_how_often_an_epoch_shows_a_row(sources: tuple[str, str, str]) -> None:
    found = training_set(section(sources, (2.5, 0.5), validation_rows=2), TASK, seed=1)
    assert found.learnt == list(range(8))
    counts = Counter(found.also[0].learnt)
    assert sorted(counts.values()) == [2, 2, 2, 2, 3, 3, 3, 3]
    assert set(counts) == set(range(8)), "no row is left out"
    assert len(set(found.also[1].learnt)) == len(found.also[1].learnt) == 2
    again = training_set(section(sources, (2.5, 0.5), validation_rows=2), TASK, seed=1)
    other = training_set(section(sources, (2.5, 0.5), validation_rows=2), TASK, seed=2)
    assert again.also == found.also
    assert other.also != found.also
    limited = training_set(section(sources, (1, 1), limit=6), TASK, seed=1)
    assert len(limited.learnt) + sum(len(each.learnt) for each in limited.also) == 6


def test_every_source_is_read_in_its_own_form(sources: tuple[str, str, str], tmp_path: Path) -> None:
    data = section(sources, (2, 1), validation_rows=1).model_dump(exclude_defaults=True)
    data |= {"limit": None, "validation_limit": None}
    recipe = tiny_recipe(tiny_llama_folder(tmp_path / "llama"), tmp_path / "run", data=data)
    checked = check(recipe, overwrite=False)
    rows = checked.rows.data.train
    assert len(rows) == 9 + 2 * 8 + 4
    numbers = Counter(row.row for row in rows)
    assert numbers == Counter([*range(9), *range(10, 18), *range(10, 18), *range(18, 22)])
    texts = {row.row: checked.reader.tokenizer.decode(row.input_ids) for row in rows}
    assert "### Instruction:\na0" in texts[0]
    assert "### Instruction:\nb0" in texts[10]
    assert texts[18] == "c0</s>", "plain text has no prompt"
    assert {"train", "train 2", "train 3"} <= checked.rows.hashes.keys()
    assert checked.recipe.data.format is None, "they have no one form"
    assert "x 2" in checked.rows.train_source


def test_a_key_is_that_of_the_first_source_and_said_of_every(
    sources: tuple[str, str, str], tmp_path: Path
) -> None:
    """`data.field` names the first one's rows; the others speak for themselves."""
    first, other = tmp_path / "first.json", tmp_path / "other.json"
    rows = [{"text": f"a{n}"} for n in range(4)]
    first.write_text(json.dumps({"train": rows, "test": rows[:1]}))
    other.write_text(json.dumps({"rows": rows}))
    data = {"train": str(first), "field": "train", "also": {sources[1]: 1, str(other): 1}, "validation": None}
    recipe = tiny_recipe(
        tiny_llama_folder(tmp_path / "llama"),
        tmp_path / "run",
        data={"task": "instruct", "limit": None} | data,
    )
    checked = check(recipe, overwrite=False)
    assert len(checked.rows.data.train) == 4 + 8 + 4
    told = [line for line in checked.rows.notes if "is one object" in line]
    assert [("'train'" in line, "'rows'" in line) for line in told] == [(True, False), (False, True)]


def test_what_was_learnt_of_every_source_is_known(sources: tuple[str, str, str]) -> None:
    values = {"name": "x", "model": {"path": "x"}, "data": section(sources, (1, 1)).model_dump()}
    learnt = learnt_by(recipe_from(values), None)
    assert {normalise(text) for text in ("a3", "b7", "c2")} <= set(learnt.questions)


def test_weights_that_mean_nothing_are_refused(sources: tuple[str, str, str]) -> None:
    for weight in (0, -1, 101):
        values = {"name": "x", "model": {"path": "x"}, "data": {"task": "instruct", "also": {"a": weight}}}
        with pytest.raises(RecipeError, match="above 0 and at most 100"):
            recipe_from(values)
    with pytest.raises(DataError, match=r"gives no rows with the weight 0.01"):
        training_set(section(sources, (0.01, 1)), TASK, seed=1)
