"""Experiments: strict suite files, a grid that is tuned on validation rows, reuse of what is done."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tiny_run import tiny_llama_folder

from neuroada_cli.data.sources import split_source
from neuroada_cli.errors import DataError, OutputError, PeerError, RecipeError
from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.suites import cell, grid, runner, tables
from neuroada_cli.suites.schema import bundled_suites, load_suite
from neuroada_cli.tasks.registry import get_task


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    values = {
        "name": "tiny",
        "device": "cpu",
        "model": {"path": str(tiny_llama_folder(folder / "llama")), "dtype": "fp32"},
        "data": {"task": "due_dates", "limit": 8, "validation_limit": 4, "max_length": 256},
        "train": {"epochs": 1, "batch_size": 4},
        "eval": {"limit": 2, "max_new_tokens": 2},
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def suite_file(folder: Path, recipe: Path, **changes: object) -> Path:
    values: dict[str, object] = {
        "name": "small",
        "recipes": {"dates": str(recipe)},
        "variants": {"K=1": {"select.k": 1}, "K=2": {"select.k": 2}},
        "tune": {"values": {"optim.lr": [1e-9, 1e-2]}, "seed": 0},
        "seeds": [0, 1],
        **changes,
    }
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def test_every_bundled_suite_makes_whole_recipes() -> None:
    assert bundled_suites()
    for name in bundled_suites():
        suite = load_suite(name)
        assert suite.name == name
        for label, variant in grid.places(suite):
            assert grid.cell(suite, label, variant, 0, {}, {}).recipe.seed == 0
            grid.trials(suite, label, variant, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": {}}, "did you mean variants"),
        ({"seeds": []}, "seeds"),
        ({"name": ".."}, "name='..'"),  # it names a folder
        ({"untuned": {"K=1": "K=3"}}, "does not name two variants"),
        ({"per_recipe": {"date": {}}}, "per_recipe.date is not one of recipes"),
    ],
)
def test_a_broken_suite_is_one_line(
    changes: dict[str, object], message: str, tmp_path: Path, recipe: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_suite(suite_file(tmp_path, recipe, **changes))


def test_a_mistake_in_one_variant_shows_before_the_first_run(tmp_path: Path, recipe: Path) -> None:
    suite = load_suite(suite_file(tmp_path, recipe, variants={"K=1": {}, "K=2": {"select.kk": 2}}))
    with pytest.raises(RecipeError, match=r"select\.kk is not a key"):
        runner.run(suite, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_hash_is_of_what_matters(tmp_path: Path, recipe: Path) -> None:
    suite = load_suite(suite_file(tmp_path, recipe))
    one = grid.cell(suite, "dates", "K=1", 0, {}, {})
    assert one.key == grid.cell(suite, "dates", "K=1", 0, {"select.k": 1}, {"data.data_dir": "x"}).key
    assert one.key != grid.cell(suite, "dates", "K=2", 0, {}, {}).key
    assert one.key != grid.cell(suite, "dates", "K=1", 1, {}, {}).key


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The setting of a text of which is measured what is forgotten."""
    text = tmp_path_factory.mktemp("general") / "general.txt"
    text.write_text("The days of a month are counted from its first.\n", encoding="utf-8")
    return {"eval.forgetting": str(text)}


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, recipe: Path, general: dict[str, str]
) -> tuple[Path, Path]:
    """(a suite file of a tuned variant and one that is not, the folder of its results)"""
    folder = tmp_path_factory.mktemp("done")
    file = suite_file(folder, recipe, set=general, untuned={"K=2": None})
    runner.run(load_suite(file), folder / "out")
    return file, folder / "out"


def test_a_suite_tunes_on_validation_reuses_and_shows(done: tuple[Path, Path]) -> None:
    suite, out = load_suite(done[0]), done[1]
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for variant in suite.variants:
        trials = [trial for trial in found["trials"] if trial["variant"] == variant]
        runs = [run for run in found["runs"] if run["variant"] == variant]
        assert [run["seed"] for run in runs] == [0, 1]
        if variant == "K=2":
            assert not trials
        else:
            assert len(trials) == 2
            best = min(trials, key=lambda trial: trial["trained"]["best_value"])  # a loss: no metric here
            assert [run["tuned"] for run in runs] == [best["tuned"]] * 2
            assert runs[0]["key"] == best["key"]  # the trial with the first seed is that run
            other = max(trials, key=lambda trial: trial["trained"]["best_value"])
            assert "forgetting" not in other["trained"], "it decides nothing in a trial"
        assert all(run["scores"]["due_dates"]["n"] == 2 for run in runs)
        assert all(math.isfinite(run["trained"]["forgetting"]) for run in runs)
    assert not list(out.glob("cells/*/run")), "nobody asked to keep checkpoints"
    assert "K=2" in (out / "table.md").read_text(encoding="utf-8")
    assert (out / "plot.png").stat().st_size > 5000
    files = {file: file.stat().st_mtime_ns for file in out.rglob("*.json") if "cells" in file.parts}
    again = runner.run(suite, out)
    assert json.loads(json.dumps(again["runs"])) == found["runs"]
    assert files == {file: file.stat().st_mtime_ns for file in out.rglob("*.json") if "cells" in file.parts}


def test_a_suite_may_show_validation_values_instead_of_scores(
    done: tuple[Path, Path], tmp_path: Path, recipe: Path, general: dict[str, str]
) -> None:
    changes = {"score": "validation", "set": general, "untuned": {"K=2": None}}
    suite = load_suite(suite_file(tmp_path, recipe, **changes))
    found = runner.run(suite, tmp_path / "out", reuse=done[1] / "results.json")
    heading, lines = tables.rows(found)
    assert heading[:2] == ["variant", "dates validation loss"]
    for line in lines:
        values = [r["trained"]["best_value"] for r in found["runs"] if r["variant"] == line[0]]
        mean, deviation = tables.spread(values)
        assert line[1] == f"{mean:.4f} ± {deviation:.4f}"
        assert not any(run.get("scores") for run in found["runs"])
    assert {run["variant"] for run in found["trials"]} == {"K=1"}
    assert {run["variant"]: bool(run["tuned"]) for run in found["runs"]} == {"K=1": True, "K=2": False}
    tables.draw(found, tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 1_000


@pytest.mark.slow
def test_a_suite_may_show_the_loss_of_reference_answers(tmp_path: Path, recipe: Path) -> None:
    """Against the model itself, row by row, by transformers' own loss."""
    import torch

    from neuroada_cli.adapter import load as adapted
    from neuroada_cli.data.encoding import encode
    from neuroada_cli.evaluation.rows import prepare
    from neuroada_cli.tasks.registry import get_protocol, get_task

    one = {"K=2": {"select.k": 2}}
    suite = load_suite(suite_file(tmp_path, recipe, score="loss", tune=None, seeds=[0], variants=one))
    out = tmp_path / "out"
    found = runner.run(suite, out, {"eval.limit": 3}, keep_runs=True)
    heading, lines = tables.rows(found)
    assert heading[:2] == ["variant", "dates loss"]
    for run, line in zip(found["runs"], lines, strict=True):
        result = run["scores"]["due_dates"]
        assert (result["n"], result["metric"], result["loss_mask"]) == (3, "loss", "target only")
        assert line[1] == f"{result['score']:.4f}"
        cell_folder = out / "cells" / run["key"]
        settings = load_recipe(cell_folder / "recipe.yaml")
        subject = adapted.load(str(cell_folder / "run"))
        rules = get_protocol(settings.data.protocol)
        job = prepare(
            get_task("due_dates"), rules, settings.data, None, 3, lambda model=subject: model.tokenizer
        )
        encoded, _ = encode(job.examples, subject.tokenizer, 256, "generation", False)
        total, count = 0.0, 0
        for row in encoded:
            labels = torch.tensor([row.labels])
            with torch.no_grad():
                mean = subject.model(input_ids=torch.tensor([row.input_ids]), labels=labels).loss
            targets = int((labels[0, 1:] != -100).sum())
            total, count = total + mean.item() * targets, count + targets
        assert result["targets"] == count
        assert result["score"] == pytest.approx(total / count, rel=1e-5)
    tables.draw(found, tmp_path / "bars.png")


def test_forgetting_is_a_column_wherever_there_is_text() -> None:
    for name in bundled_suites():
        suite = load_suite(name)
        for label, variant in grid.places(suite):
            made = grid.cell(suite, label, variant, suite.seeds[0], {}, {}).recipe
            writes = get_task(made.data.task).kind == "generation"
            assert (made.eval.forgetting is not None) == writes, (name, label, variant)
            if writes:  # the set has training rows only
                assert split_source(str(made.eval.forgetting), "test")[1] == "train"


def test_columns_of_a_picture_are_named_once() -> None:
    assert tables._ticks([("STS-B", "stsb"), ("CoLA", "cola")]) == ["STS-B", "CoLA"]
    assert tables._ticks([("small", "boolq"), ("small", "piqa")]) == ["boolq", "piqa"]
    assert tables._ticks([("small", "boolq")]) == ["small\nboolq"]
    assert tables._ticks([("a", "boolq"), ("b", "boolq")]) == ["a\nboolq", "b\nboolq"]


def test_a_table_says_why_it_has_no_column_of_forgetting(tmp_path: Path, recipe: Path) -> None:
    """Measured, not measured, nothing to measure, and by a method that edits prompts alone."""
    variants = {"K=1": {"select.k": 1}, "edits": {"train.method": "loreft", "peer.rank": 1}}
    suite = load_suite(suite_file(tmp_path, recipe, variants=variants, tune=None)).model_dump(mode="json")
    trained = {"forgetting": 0.25, "total": 4, "trainable": 1, "rows_per_second": 1.0, "peak_bytes": 1}
    run = {"recipe": "dates", "variant": "K=1", "seed": 0, "tuned": {}, "trained": trained, "failed": None}
    found = {"suite": suite, "runs": [run], "loss_masks": ["target only"], "protocols": ["reft"]}
    assert "forgetting" in tables.rows(found)[0]
    assert tables.about_forgetting(found).endswith("edits: 0 by design: the method edits prompts alone, and "
                                                   "plain text has none.")  # fmt: skip
    run["trained"] = {key: value for key, value in trained.items() if key != "forgetting"}
    assert "forgetting" not in tables.rows(found)[0]
    assert "was not measured in these runs" in tables.about_forgetting(found)
    assert "no loss on text" in tables.about_forgetting(found | {"loss_masks": ["label"]})
    older = {key: value for key, value in found.items() if key != "loss_masks"}
    scored = [run | {"scores": {"stsb": {"score": 0.5}}}]
    assert "no loss on text" in tables.about_forgetting(older | {"runs": scored})


def test_equal_runs_are_taken_from_an_earlier_result_file(
    done: tuple[Path, Path], tmp_path: Path, recipe: Path, general: dict[str, str]
) -> None:
    first = json.loads((done[1] / "results.json").read_text(encoding="utf-8"))
    more = {"K=2": {"select.k": 2}, "K=3": {"select.k": 3}}
    plain = {"set": general, "tune": None, "seeds": [0]}
    other = load_suite(suite_file(tmp_path, recipe, **plain, variants=more))
    found = runner.run(other, tmp_path / "b", reuse=done[1] / "results.json")
    old = {run["key"]: run for run in first["runs"]}
    for run in found["runs"]:
        taken = run["key"] in old
        assert taken == (run["variant"] == "K=2")
        assert run["trained"].pop("reused", False) == taken
        if taken:
            assert (run["trained"], run["scores"]) == (old[run["key"]]["trained"], old[run["key"]]["scores"])
            assert not (tmp_path / "b" / "cells" / run["key"] / "log.txt").exists()  # no process ran
    # known to be trained, but with nothing left to score: trained again, to the same end
    unscored = tmp_path / "unscored.json"
    unscored.write_text(json.dumps(first | {"runs": [run | {"scores": None} for run in first["runs"]]}))
    two = suite_file(tmp_path, recipe, **plain, variants={"K=2": more["K=2"]})
    (again,) = runner.run(load_suite(two), tmp_path / "c", reuse=unscored)["runs"]
    before = old[again["key"]]
    assert again["scores"]["due_dates"]["score"] == before["scores"]["due_dates"]["score"]
    assert again["trained"]["losses"] == before["trained"]["losses"]


def test_what_is_no_result_file_is_refused(tmp_path: Path, recipe: Path) -> None:
    suite, wrong = load_suite(suite_file(tmp_path, recipe)), tmp_path / "wrong.json"
    for text in ("[]", "{}", '{"suite": {}, "trials": [1]}', '{"runs": [{"key": "../x"}]}', "{"):
        wrong.write_text(text)
        with pytest.raises(DataError, match=r"wrong\.json"):
            runner.run(suite, tmp_path / "out", reuse=wrong)
    assert not (tmp_path / "out").exists()


def test_leaked_columns_say_so_and_are_averaged_apart() -> None:
    def run(variant: str, seed: int, scores: dict[str, tuple[float, int | None]]) -> dict[str, object]:
        trained = {"trainable": 1, "total": 100, "rows_per_second": 1.0, "peak_bytes": 10**9}
        results = {task: {"score": s, "leaked": leaked, "n": 100} for task, (s, leaked) in scores.items()}
        about = {"recipe": "m", "variant": variant, "seed": seed, "tuned": {}, "failed": None}
        return about | {"trained": trained, "scores": results}

    runs = [run("v", seed, {"a": (0.5 + seed / 10, 0), "b": (0.9, 1), "c": (0.3, None)}) for seed in (0, 1)]
    suite = {"recipes": {"m": "x"}, "variants": {"v": {}}, "score": True, "tune": None, "seeds": [0, 1]}
    heading, (line,) = tables.rows({"suite": suite, "runs": runs})
    assert heading[1:6] == ["a", "b (leaked)", "c", "average", "clean average"]
    assert line[1:6] == ["55.0 ± 7.1", "90.0 ± 0.0", "30.0 ± 0.0", "58.3 ± 2.4", "42.5 ± 3.5"]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables.table({"suite": suite | {"name": "x"}, "runs": runs, "protocols": ["reft"]}))
    text = console.export_text()
    assert "…" not in text  # nothing is cut off in a terminal of the usual width
    assert text.count("v ") >= 2
    many = {f"t{n}": (0.5, 0) for n in range(8)}
    wide = {"suite": suite | {"name": "x"}, "runs": [run("v", 0, many)], "protocols": ["reft"]}
    console.print(tables.table(wide))
    text = console.export_text()
    assert "…" not in text
    assert "average" in text
    assert "t7" not in text
    assert "t7" in tables.markdown(wide)


def test_a_new_empty_setting_leaves_the_hash_as_it_was(tmp_path: Path, recipe: Path) -> None:
    one = grid.cell(load_suite(suite_file(tmp_path, recipe)), "dates", "K=1", 0, {}, {})
    without = one.recipe.model_dump(mode="json", exclude_none=True)
    assert "dtype" not in without["eval"]  # the newest of them
    assert (
        one.key
        != grid.cell(
            load_suite(suite_file(tmp_path, recipe)), "dates", "K=1", 0, {"eval.dtype": "bf16"}, {}
        ).key
    )


def test_a_cell_equals_the_commands_run_by_hand(
    done: tuple[Path, Path], tmp_path: Path, recipe: Path
) -> None:
    from neuroada_cli.commands import train

    runs = json.loads((done[1] / "results.json").read_text(encoding="utf-8"))["runs"]
    (cell_run,) = (run for run in runs if (run["variant"], run["seed"]) == ("K=2", 1))
    given = ["select.k=2", "seed=1", f"run_dir={json.dumps(str(tmp_path / 'run'))}"]
    by_hand = train.run(load_recipe(recipe, given), quiet=True)
    assert cell_run["trained"]["best_value"] == by_hand.best_value
    assert cell_run["trained"]["loss"] == by_hand.loss


def test_failed_cells_are_named_and_the_others_are_done(tmp_path: Path, recipe: Path) -> None:
    variants = {"good": {}, "bad": {"select.k": 4000}}
    suite = load_suite(suite_file(tmp_path, recipe, tune=None, seeds=[0], variants=variants))
    with pytest.raises(PeerError, match=r"1 cell failed.*select.k=4000"):
        runner.run(suite, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {run["variant"]: run["failed"] is None for run in found["runs"]} == {
        "good": True,
        "bad": False,
    }


def test_a_second_runner_in_the_folder_is_refused(tmp_path: Path, recipe: Path) -> None:
    from neuroada_cli import files

    with files.Lock(tmp_path / "out"), pytest.raises(OutputError, match="in use by process"):
        runner.run(load_suite(suite_file(tmp_path, recipe)), tmp_path / "out")


@pytest.mark.slow
def test_stopped_and_started_again_it_ends_as_if_never_stopped(tmp_path: Path, recipe: Path) -> None:
    changes = {"tune": None, "seeds": [0], "variants": {"K=1": {"train.epochs": 40}}}
    file = suite_file(tmp_path, recipe, **changes)
    command = [sys.executable, "-m", "neuroada_cli", "bench", "--suite", str(file), "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([*command, str(tmp_path / "a")], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "a").glob("cells/*/run/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    message = child.communicate()[1].decode()
    assert child.returncode == 143, message
    assert "start it again" in message
    subprocess.run([*command, str(tmp_path / "a")], env=environment, check=True)
    subprocess.run([*command, str(tmp_path / "b")], env=environment, check=True)
    one, other = (json.loads((tmp_path / name / "results.json").read_text())["runs"] for name in "ab")
    assert one[0]["trained"]["losses"] == other[0]["trained"]["losses"]
    assert one[0]["trained"]["best_value"] == other[0]["trained"]["best_value"]
    assert len(one[0]["trained"]["losses"]) == 80


def test_spread_is_the_sample_standard_deviation() -> None:
    assert tables.spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert tables.spread([4.0]) == (4.0, None)
    assert cell.RUN == "run"
