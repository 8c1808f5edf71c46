"""The Python interface: its names, what they cost, and the tour of docs/python.md as it stands there."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import pytest
from tiny_run import one_thread, tiny_llama_folder  # noqa: F401

import neuroada_cli as neuroada
from neuroada_cli.cli import app

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
VERBS = ("select", "attach", "train", "merge", "evaluate")


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the page's tour leaves behind, run in a folder of its own on a tiny model."""
    folder = tmp_path_factory.mktemp("tour")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    names: dict[str, Any] = {"MODEL": str(tiny_llama_folder(folder / "model"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, "docs/python.md", "exec"), names)
    return names | {"folder": folder}


def test_the_tour_trains_what_was_selected(tour: dict[str, Any]) -> None:
    run = tour["run"]
    assert run.steps == 2
    assert (tour["folder"] / run.run_dir / "metrics.jsonl").is_file()
    stored = tour["folder"] / "chosen.safetensors"
    assert stored.read_bytes() == (tour["folder"] / run.run_dir / "selection.safetensors").read_bytes()


def test_the_tour_scores_the_merged_model(tour: dict[str, Any]) -> None:
    assert 0 < tour["merged"].stats.changed <= tour["run"].trainable
    results = json.loads((tour["folder"] / "merged" / "eval" / "results.json").read_text(encoding="utf-8"))
    assert results["due_dates"]["metrics"] == tour["scores"].results["due_dates"].metrics
    assert len(tour["scores"].predictions["due_dates"]) == 4


def test_what_is_refused_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(neuroada.UserError, match=r"no such folder"):
        neuroada.merge(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(neuroada.UserError, match=r"optim\.rate"):
        neuroada.recipe_from(
            {"name": "x", "model": {"path": "m"}, "data": {"task": "rte"}, "optim": {"rate": 1}}
        )


def test_every_name_is_there_and_the_verbs_are_typed() -> None:
    assert set(neuroada.__all__) <= set(dir(neuroada))
    for name in neuroada.__all__:
        assert getattr(neuroada, name) is not None
    for verb in VERBS:
        signature = inspect.signature(getattr(neuroada, verb))
        kinds = [parameter.annotation for parameter in signature.parameters.values()]
        assert inspect.Signature.empty not in [*kinds, signature.return_annotation]
        assert getattr(neuroada, verb).__doc__
        assert f"`{verb}(" in PAGE
    assert (resources(neuroada) / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        _ = neuroada.fit


@pytest.mark.parametrize(
    ("verb", "module"),
    [("select", "select"), ("train", "train"), ("merge", "merge"), ("evaluate", "eval")],
)
def test_a_verb_is_the_function_that_its_command_calls(
    verb: str, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import importlib

    home = importlib.import_module(f"neuroada_cli.commands.{module}")
    assert getattr(neuroada, verb) is home.run
    called: list[object] = []
    monkeypatch.setattr(home, "run", lambda *args, **keywords: called.append(args))
    arguments = {"merge": [str(tmp_path)], "eval": ["quickstart"]}.get(module, ["quickstart"])
    with pytest.raises(SystemExit):
        app.main([module, *arguments])
    assert called


def test_importing_the_package_imports_no_torch() -> None:
    script = "import sys, neuroada_cli\nassert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
