"""Classes of one's own texts: found in the rows, kept with the run, refused where they are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_bert_folder, tiny_recipe

from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks.registry import get_task, recipe_task, said_of
from neuroada_cli.training.preflight import check


def section(tmp_path: Path, rows: list[dict[str, Any]], **more: Any) -> DataSection:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSection(task="text_classes", train=str(file), **more)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["good", "bad", "good"], ("bad", "good")),
        ([10, 9, -1], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        ([1.0, 0, 2], ("0", "1", "2")),
        ([True, False], ("false", "true")),
    ],
    ids=str,
)
def test_labels_are_found_in_the_rows(tmp_path: Path, labels: list[Any], found: tuple[str, ...]) -> None:
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]
    task = recipe_task(section(tmp_path, rows))
    assert (task.labels, task.num_labels, task.kind) == (found, len(found), "classification")
    numbers = [task.example(row, n, "reft").answer for n, row in enumerate(rows)]
    assert numbers == [found.index(str(task.labels[n])) for n in numbers], "a label is its own number"
    assert len(set(numbers)) == len(found)


def test_the_recipe_names_labels_and_columns(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": "y", "c": "no"}, {"a": "z", "b": "w", "c": "yes"}]
    columns = {"text": "a", "pair": "b", "label": "c"}
    task = recipe_task(section(tmp_path, rows, labels=["yes", "no"], columns=columns))
    example = task.example(rows[0], 7, "reft")
    assert (example.prompt, example.pair, example.answer, example.row) == ("x", "y", 1, 7)
    with pytest.raises(ValueError, match="label 'nope' is none of the 2; did you mean no"):
        task.example(rows[0] | {"c": "nope"}, 0, "reft")


def test_what_holds_no_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 2 rows have no label .*; columns are text"):
        recipe_task(section(tmp_path, [{"text": "a", "label": 1}, {"text": "b"}]))
    with pytest.raises(RecipeError, match="fewer than two"):
        recipe_task(section(tmp_path, [{"text": "a", "label": 1}] * 3))
    many = [{"text": "a", "label": n} for n in range(1001)]
    with pytest.raises(DataError, match="1,001 different values"):
        recipe_task(section(tmp_path, many))
    with pytest.raises(RecipeError, match="classes of text_classes are not known"):
        said_of(get_task("text_classes"), None)


def test_a_run_keeps_the_labels_that_it_found(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": ["b", "a", "c"][n % 3]} for n in range(12)]
    data = section(tmp_path, rows).model_dump(exclude_defaults=True) | {
        "limit": None,
        "validation_limit": None,
    }
    recipe = tiny_recipe(tiny_bert_folder(tmp_path / "bert"), tmp_path / "run", data=data)
    checked = check(recipe, overwrite=False)
    assert checked.recipe.data.labels == ["a", "b", "c"]
    assert [row.labels for row in checked.rows.data.train[:4]] == [1, 0, 2, 1]
