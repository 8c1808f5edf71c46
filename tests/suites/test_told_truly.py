"""What a suite's table says is what was run: no seed twice, no rate that did not train, no other files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_run import tiny_llama_folder

from neuroada_cli.errors import DataError, ModelError, RecipeError
from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.suites import cell, grid, runner
from neuroada_cli.suites.inputs import changed, inputs
from neuroada_cli.suites.schema import Suite, load_suite


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.json"
    said = [{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(8)]
    file.write_text(json.dumps(said), encoding="utf-8")
    return file


@pytest.fixture
def recipe(tmp_path: Path, rows: Path) -> Path:
    values = {
        "name": "tiny",
        "device": "cpu",
        "model": {"path": str(tiny_llama_folder(tmp_path / "llama")), "dtype": "fp32"},
        "data": {"task": "instruct", "train": str(rows), "validation_rows": 2},
        "train": {"epochs": 1, "batch_size": 4},
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def suite(recipe: Path, **changes: object) -> Suite:
    values = {"name": "small", "recipes": {"own": str(recipe)}, "variants": {"K=1": {"select.k": 1}}}
    file = recipe.with_name("suite.yaml")
    file.write_text(yaml.safe_dump(values | {"score": "validation"} | changes), encoding="utf-8")
    return load_suite(file)


TUNED = {"values": {"optim.lr": [1e-3, 1e-2]}, "seed": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1, 0]}, r"seeds=\[0, 1, 0\]: .*each seed once"),
        ({"set": {"seed": 3}}, r"set: seed is the suite's own to give; list them under seeds"),
        ({"variants": {"a": {"run_dir": "x"}}}, r"variants\.a: run_dir .*--out"),
        ({"per_recipe": {"own": {"seed": 1}}}, r"per_recipe\.own: seed"),
        ({"tune": {"values": {"seed": [1, 2]}}}, r"tune\.values: seed"),
        ({"tune": TUNED, "variants": {"a": {"optim.lr": 1}}}, r"variants\.a: optim\.lr is tuned.*untuned"),
    ],
)  # fmt: skip
def test_a_setting_that_would_not_train_is_refused(
    changes: dict[str, object], message: str, recipe: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        suite(recipe, **changes)


def test_a_variant_that_is_not_tuned_keeps_a_value_of_its_own(recipe: Path) -> None:
    made = suite(recipe, tune=TUNED, variants={"a": {"optim.lr": 0.5}}, untuned={"a": None})
    assert grid.cell(made, "own", "a", 0, {}, {}).recipe.optim.lr == 0.5


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"optim.lr": 0.5}, r"--set optim\.lr: is tuned by this suite: .*tune\.values"),
        ({"seed": 3}, r"--set seed: is the suite's own to give"),
    ],
)
def test_an_override_that_the_table_would_not_tell_is_refused(
    extra: dict[str, object], message: str, recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        runner.run(suite(recipe, tune=TUNED), tmp_path / "out", extra)
    assert not (tmp_path / "out").exists()


def finished(out: Path, made: Suite) -> Path:
    """A cell as one that ran leaves it."""
    one = grid.cell(made, "own", "K=1", 0, {}, {})
    folder = out / "cells" / one.key
    folder.mkdir(parents=True)
    numbers = {"trainable": 1, "total": 4, "rows_per_second": 1.0, "peak_bytes": 1, "metric": None}
    trained = numbers | {"best_value": 2.5, cell.INPUTS: inputs(one.recipe)}
    (folder / cell.TRAINED).write_text(json.dumps(trained), encoding="utf-8")
    return folder


def test_what_was_run_on_other_rows_or_another_model_is_no_result(
    recipe: Path, rows: Path, tmp_path: Path
) -> None:
    made, out = suite(recipe), tmp_path / "out"
    folder = finished(out, made)
    found = runner.run(made, out)
    assert found["runs"][0]["trained"]["best_value"] == 2.5
    before = (folder / cell.TRAINED).read_bytes()
    text = rows.read_text(encoding="utf-8")
    rows.write_text(text.replace("Say 7.", "Say seven."), encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.json: has changed since .*; name another folder with --out"):
        runner.run(made, out)
    assert (folder / cell.TRAINED).read_bytes() == before
    rows.write_text(text, encoding="utf-8")
    runner.run(made, out)


@pytest.mark.slow
def test_what_a_result_file_ran_on_other_rows_is_not_taken_over(
    recipe: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = suite(recipe)
    finished(tmp_path / "out", made)
    runner.run(made, tmp_path / "out")
    rows.write_text(rows.read_text(encoding="utf-8").replace("Say 7.", "Say seven."), encoding="utf-8")
    found = runner.run(made, tmp_path / "other", reuse=tmp_path / "out" / "results.json")
    trained = found["runs"][0]["trained"]
    assert "reused" not in trained
    assert trained["best_value"] != 2.5
    assert trained[cell.INPUTS] == inputs(load_recipe(recipe))
    assert "is not taken over" in " ".join(capsys.readouterr().err.split())


def test_what_a_recipe_is_made_of(recipe: Path, rows: Path, tmp_path: Path) -> None:
    made = load_recipe(recipe)
    found = inputs(made)
    assert list(found) == [str(tmp_path / "llama"), str(rows)]
    tiny_llama_folder(tmp_path / "other", num_hidden_layers=1)
    other = load_recipe(recipe, [f"model.path={tmp_path / 'other'}"])
    moved = dict(zip(found, inputs(other).values(), strict=True))
    assert changed(found, moved) == str(tmp_path / "llama")
    assert changed(found, {}) is None  # lies elsewhere now: nothing is known
    assert changed({}, found) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"best_value'])
def test_a_damaged_cell_is_named_with_what_to_do(text: str, recipe: Path, tmp_path: Path) -> None:
    made = suite(recipe)
    folder = finished(tmp_path / "out", made)
    (folder / cell.TRAINED).write_text(text, encoding="utf-8")
    with pytest.raises(
        ModelError, match=r"trained\.json: is not what a cell has written; remove .*: it runs"
    ):
        runner.run(made, tmp_path / "out")


def test_damaged_scores_are_named_with_what_to_do(recipe: Path, tmp_path: Path) -> None:
    made = suite(recipe, score="loss")
    folder = finished(tmp_path / "out", made)
    (folder / "loss.json").write_text('{"a', encoding="utf-8")
    with pytest.raises(ModelError, match=r"loss\.json: is not what a cell has written"):
        runner.run(made, tmp_path / "out")


def test_a_result_file_without_its_suite_is_refused(recipe: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"trials": [], "runs": [{"key": "0123456789abcdef", "trained": {}}]}')
    with pytest.raises(DataError, match=r"wrong\.json: is not the result file of a suite"):
        runner.run(suite(recipe), tmp_path / "out", reuse=wrong)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel tells it")
def test_who_started_a_process_takes_it_along() -> None:
    """As a suite that is killed does with its cells."""
    child = (
        "import time; from neuroada_cli import stopping; stopping.install(); stopping.end_with_parent(); "
        "print('ready', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stderr is not None
    assert started.stdout.readline() == "ready\n"
    os.kill(started.pid, signal.SIGKILL)
    assert (
        started.stderr.read() == "stopped by SIGTERM; nothing is left half written\n"
    )  # ends with the child
    started.wait()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel tells it")
def test_a_suite_that_is_killed_is_gone_on_with(recipe: Path, tmp_path: Path) -> None:
    suite(recipe, set={"train.epochs": 2000})
    words = ["bench", "--suite", str(recipe.with_name("suite.yaml")), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "neuroada_cli", *words]
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (begun := list((tmp_path / "out").glob("cells/*/run/metrics.jsonl"))):
        assert started.poll() is None
        time.sleep(0.1)
    started.kill()
    started.wait()
    folder = begun[0].parent
    while not list(folder.glob("checkpoint-*")):  # the cell saves, and leaves
        time.sleep(0.1)
    log = folder.parent / "log.txt"
    while "stopped by SIGTERM" not in log.read_text(encoding="utf-8"):
        time.sleep(0.1)
