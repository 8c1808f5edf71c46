"""A selection that lies in a run folder is used where the recipe would choose it, and nowhere else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli.commands import select, train
from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.file import FORMAT, format_of, read_selection, write_selection
from neuroada_cli.training.preflight import check
from neuroada_cli.training.remarks import remarks

Changes = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("model") / "llama")


def made(model: Path, run: Path, changes: Changes) -> Recipe:
    """`changes` by section; a plain key is the recipe's own."""
    sections = {name: values for name, values in changes.items() if isinstance(values, dict)}
    recipe = tiny_recipe(model, run, **sections)
    plain = {name: value for name, value in changes.items() if name not in sections}
    return recipe_from({**recipe.model_dump(mode="json", exclude_unset=True), **plain})


RANDOM, LIFT = {"k": 2, "criterion": "random"}, {"k": 2, "criterion": "lift", "lift_rank": 4}
ROWS = {"k": 2, "criterion": "activation", "calibration_batches": 2}
OTHERS: list[tuple[Changes, Changes, str]] = [
    ({"select": {"k_per": {"q_proj": 4}}}, {"select": {"k_per": {"o_proj": 4}}}, "connections, the recipe"),
    ({"select": {"neurons": 0.5}}, {"select": {"neurons": 0.5}, "seed": 7}, "to other neurons than"),
    (
        {"select": {"coverage": "block", "k_per": {"*.layers.0.*": 4}}},
        {"select": {"coverage": "block", "k_per": {"*.layers.1.*": 4}}},
        "and the 6 layers with it",
    ),
    (
        {"select": {"coverage": "matrix", "k_per": {"q_proj": 4}}},
        {"select": {"coverage": "matrix", "k_per": {"o_proj": 4}}},
        "connections, the recipe",
    ),
    ({"select": RANDOM}, {"select": RANDOM, "seed": 7}, "was chosen with seed=42; the recipe has 7"),
    ({"select": LIFT}, {"select": {**LIFT, "lift_rank": 5}}, "select.lift_rank=4; the recipe has"),
    ({"select": ROWS}, {"select": {**ROWS, "calibration_batches": 3}}, "select.calibration_batches=2; the"),
    ({"select": ROWS}, {"select": ROWS, "data": {"limit": 20}}, "was chosen by other training rows than"),
    ({"select": ROWS}, {"select": ROWS, "train": {"micro_batch_size": 4}}, "rows of a batch=2; the recipe"),
    ({"select": {"k": 2}}, {"select": {"k": 2}, "model": {"quantization": "int8"}}, "quantization=null; the"),
    ({"select": {"k": 2}}, {"select": {"k": 3}}, "the recipe says k=3"),
]
ALIKE: list[tuple[Changes, Changes]] = [
    ({"select": {"k_per": {"q_proj": 4}}}, {"select": {"k_per": {"*.q_proj": 4}}}),
    ({"select": {"k": 2}}, {"select": {"k": 2, "lift_rank": 3, "calibration_batches": 1}, "seed": 7}),
    ({"select": RANDOM}, {"select": RANDOM, "optim": {"lr": 0.5}, "train": {"batch_size": 8}}),
    ({"select": ROWS}, {"select": ROWS, "train": {"share_prefix": True}}),
    ({"select": {"tile": 8, "k": 6}}, {"select": {"tile": 8, "k": 6}, "seed": 7}),
    ({"select": {"coverage": "model"}}, {"select": {"coverage": "model"}, "seed": 7}),
]


@pytest.mark.parametrize(("before", "now", "said"), OTHERS)
def test_what_the_recipe_would_not_choose_is_refused(
    before: Changes, now: Changes, said: str, tmp_path: Path, model: Path
) -> None:
    file = select.run(made(model, tmp_path / "run", before), quiet=True)
    check(made(model, tmp_path / "run", before), overwrite=False)
    with pytest.raises(RecipeError) as caught:
        check(made(model, tmp_path / "run", now), overwrite=False)
    assert said in caught.value.line()
    assert "--selection" in caught.value.line()
    named = {**now, "select": {**now["select"], "file": str(file)}}
    checked = check(made(model, tmp_path / "run", named), overwrite=False)
    assert checked.given is not None, "what is named is the last word"
    assert checked.unused is not None
    assert checked.unused in list(remarks(checked))


@pytest.mark.parametrize(("before", "now"), ALIKE)
def test_settings_that_do_not_change_the_choice_are_let_through(
    before: Changes, now: Changes, tmp_path: Path, model: Path
) -> None:
    file = select.run(made(model, tmp_path / "run", before), quiet=True)
    checked = check(made(model, tmp_path / "run", now), overwrite=False)
    assert checked.given is not None
    again = read_selection(select.run(made(model, tmp_path / "other", now), quiet=True))
    assert all(torch.equal(again.indices[n], index) for n, index in read_selection(file).indices.items())
    named = {**now, "select": {**now["select"], "file": str(file)}}
    assert check(made(model, tmp_path / "run", named), overwrite=False).unused is None


def test_what_an_older_version_did_not_store_is_not_compared(tmp_path: Path, model: Path) -> None:
    before, now = {"select": RANDOM}, {"select": RANDOM, "seed": 7}
    file = select.run(made(model, tmp_path / "run", before), quiet=True)
    held = read_selection(file)
    assert held.rule == {"model.quantization": None, "seed": 42}
    write_selection(file, dataclasses.replace(held, rule=None))
    assert read_selection(file).rule is None
    assert format_of(read_selection(file)) <= FORMAT
    check(made(model, tmp_path / "run", now), overwrite=False)


@pytest.mark.parametrize("rule", [[], {"seed": [1]}, {"seed": "a\nb"}, {"seed": True}])
def test_a_broken_rule_is_refused(rule: Any, tmp_path: Path, model: Path) -> None:
    file = select.run(made(model, tmp_path / "run", {}), quiet=True)
    write_selection(file, dataclasses.replace(read_selection(file), rule=rule))
    with pytest.raises(ModelError, match="broken description"):
        read_selection(file)


def test_a_start_with_another_k_says_that_it_does_not_count(tmp_path: Path, model: Path) -> None:
    first = train.run(made(model, tmp_path / "a", {"train": {"max_steps": 1, "epochs": 1}}), quiet=True)
    start = {"start_from": str(first.run_dir)}
    other = check(made(model, tmp_path / "b", {"select": {"k": 3}, "train": start}), overwrite=False)
    assert other.unused is not None
    assert other.unused.startswith("select.k does not count: what trains is the selection of")
    assert "with k=2 by magnitude in 14 layers" in other.unused
    assert check(made(model, tmp_path / "b", {"train": start}), overwrite=False).unused is None
