"""What is said before a run: memory by what will really be stored, and a warmup that is too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli import hub
from neuroada_cli.benchmarking.steps import random_batch
from neuroada_cli.commands import select
from neuroada_cli.delta.index import size
from neuroada_cli.loop.loss import LOSSES
from neuroada_cli.memory import StepMemory, TensorBytes
from neuroada_cli.methods import METHODS
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.file import Selection, read_selection
from neuroada_cli.training import dry_run, forecast
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
