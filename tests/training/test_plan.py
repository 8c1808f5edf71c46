"""What is said before a run: memory by what will really be stored, and a warmup that is too long."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli import hub, memory
from neuroada_cli.benchmarking.steps import random_batch
from neuroada_cli.commands import select
from neuroada_cli.delta.index import size
from neuroada_cli.loop.loss import LOSSES
from neuroada_cli.memory import StepMemory, TensorBytes
from neuroada_cli.methods import METHODS
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.file import Selection, read_selection
from neuroada_cli.training import dry_run, forecast, pace, plan
from neuroada_cli.training.preflight import check

AT_LEAST = "tokens, at least"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("model") / "llama")


def predicted_state(recipe: Recipe) -> int:
    found = forecast.dry_run(check(recipe, overwrite=False))
    assert found is not None
    return found.state


def measured_state(recipe: Recipe, selection: Selection) -> int:
    """What the recipe's method really keeps beside the weights."""
    loaded = hub.load_model(Path(recipe.model.path), "causal-lm", "fp32").model.train()
    method = METHODS[recipe.train.method].build()
    step = StepMemory(loaded, method, lambda: method.attach(loaded, selection.indices), TensorBytes())
    batch = random_batch(96, "generation", 2, 16, "cpu")
    return step.run(lambda: LOSSES["generation"](loaded, batch)[0]).state


# rows of different length, and by how much what is stored exceeds what trains at the least
UNEVEN: list[tuple[dict[str, Any], bool]] = [
    ({"tile": 8, "budget": 640, "criterion": "gradient"}, False),
    ({"coverage": "model", "k": 2}, False),
    ({"neurons": 0.2, "k": 2}, True),
    ({"k_per": {"q_proj": 9, "*.mlp.*": 0}}, True),
]


@pytest.mark.parametrize(("spread", "known"), UNEVEN, ids=lambda c: str(c))
def test_a_dry_run_goes_by_what_is_stored_once_it_is_known(
    spread: dict[str, Any], known: bool, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same K for every neuron of a layer it is known from the start, else from the selection on."""
    recipe = tiny_recipe(model, tmp_path / "run", select=spread)
    before = predicted_state(recipe)
    assert (AT_LEAST in capsys.readouterr().out) == (not known)
    selection = read_selection(select.run(recipe, quiet=True))
    real = measured_state(recipe, selection)
    trained = sum(size(index_OK) for index_OK in selection.indices.values())
    assert sum(index_OK.numel() for index_OK in selection.indices.values()) > 1.3 * trained
    assert before == pytest.approx(real, rel=0.1) if known else before < real
    if known:
        return
    if "tile" in spread:  # a file that is named, or the run folder's own
        file = str(tmp_path / "run" / "selection.safetensors")
        recipe = tiny_recipe(model, tmp_path / "other", select={"file": file})
    assert predicted_state(recipe) == pytest.approx(real, rel=0.1)
    assert AT_LEAST not in capsys.readouterr().out


@pytest.mark.parametrize("method", ["full", "mask"])
def test_other_methods_are_predicted_as_before(
    method: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(model, tmp_path / "run", train={"method": method})
    assert predicted_state(recipe) > 0
    assert AT_LEAST not in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "told"), [(12, False), (13, True)])
def test_a_warmup_longer_than_the_run_is_told(steps: int, told: bool, model: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(model, tmp_path / "run", optim={"warmup_ratio": 0, "warmup_steps": steps})
    checked = check(recipe, overwrite=False)
    console = Console(record=True, quiet=False, file=(tmp_path / "shown").open("w"), width=200)
    dry_run.show(checked, console)
    assert ("optim.warmup_steps=13 of 12 steps" in console.export_text()) == told


# ---------------------------------------------------------------------------------------------------
# What was worked out before


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def facts(text: str) -> list[str]:
    """What a dry run says, but for when its steps were timed."""
    return [line.split("random weights")[0] for line in text.splitlines() if "available here" not in line]


def test_a_dry_run_of_what_was_predicted_before_says_the_same_without_the_models_code(
    model: Path,
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = tiny_recipe(model, tmp_path / "run")
    monkeypatch.setattr(forecast, "memory_of", lambda *_: 100_000_000)
    first, said = forecast.dry_run(check(recipe, overwrite=False)), capsys.readouterr().out
    monkeypatch.setattr(hub.base, "skeleton", lambda *_: pytest.fail("the model's code is asked"))
    assert forecast.dry_run(check(recipe, overwrite=False)) == first is not None
    again = capsys.readouterr().out
    assert facts(again) == facts(said)
    assert "random weights, timed at " in again
    assert "timed at" not in said


CHANGES: dict[str, dict[str, Any]] = {
    "k": {"select": {"k": 3}},
    "targets": {"select": {"targets": ["q_proj"]}},
    "rows": {"train": {"batch_size": 1, "micro_batch_size": 1}},
    "type": {"model": {"dtype": "bf16"}},
    "checkpointing": {"train": {"gradient_checkpointing": True}},
    "method": {"train": {"method": "mask"}},
}


@pytest.mark.parametrize("change", [*CHANGES, "config", "code"])
def test_another_step_is_predicted_anew(
    change: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tiny_llama_folder(tmp_path / "llama"), []
    step = memory.StepBytes(4, 3, 2, (9, 8, 7))  # what it is does not matter here, but when it is asked
    monkeypatch.setattr(memory, "predict_step", lambda *given, **_: asked.append(given) or step)

    def predicted(**changes: Any) -> memory.StepBytes | str:
        checked = check(tiny_recipe(folder, tmp_path / "run", **changes), overwrite=False)
        return plan.predicted_step(checked.recipe, checked.plan, checked.rows, checked.base, "cpu", 1)

    assert predicted() == step
    once = len(asked)  # a step, and a look at longer validation rows
    assert predicted() == step
    assert len(asked) == once
    if change == "config":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    elif change == "code":
        monkeypatch.setattr(plan, "code_of", lambda *_: "other")
    predicted(**CHANGES.get(change, {}))
    assert len(asked) == 2 * once


def test_a_time_is_kept_for_a_day() -> None:
    now = datetime.datetime(2026, 1, 2, 12)
    record = {"seconds": 0.5, "when": (now - datetime.timedelta(hours=23)).isoformat()}
    assert pace._as_timed(record, now).per_token == 0.5
    for age in (datetime.timedelta(hours=24), datetime.timedelta(minutes=-1)):
        with pytest.raises(LookupError):
            pace._as_timed(record | {"when": (now - age).isoformat()}, now)


@pytest.mark.parametrize("bend", [0, 40, 700])
@pytest.mark.parametrize("room", [10, 1000, 2100, 7777, 123_456])
def test_the_most_rows_that_fit(room: int, bend: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a memory that is a line, and from `bend` rows on a steeper one: never too many, and few too few."""

    def peak(rows: int) -> int:
        return 500 + 100 * rows + 30 * max(0, rows - bend)

    monkeypatch.setattr(forecast, "_peak_of", lambda _, rows: peak(rows))
    found = forecast._most_rows(SimpleNamespace(), room, 4, peak(4))  # type: ignore[arg-type]
    exact = max((rows for rows in range(4096) if rows == 0 or peak(rows) <= room), default=0)
    assert found is not None
    assert 0.8 * exact - 1 <= found <= exact


@pytest.mark.parametrize(
    ("batch", "rows", "steps", "told"),
    [
        (16, 64, 4, "4 steps of 16 rows"),
        (16, 70, 5, "5 steps of 16 rows, the last of an epoch of 6"),
        (16, 70, 4, "4 steps of 16 rows"),  # train.max_steps: the last one is not reached
        (16, 70, 11, "11 steps of 16 rows, the last of an epoch of 6"),
        (16, 5, 3, "3 steps of 5 rows"),
        (1, 1, 1, "1 step of 1 row"),
    ],
)
def test_rows_of_a_step_are_those_that_there_are(batch: int, rows: int, steps: int, told: str) -> None:
    assert plan.Plan.walks(SimpleNamespace(steps=steps), batch, rows) == told  # type: ignore[arg-type]
