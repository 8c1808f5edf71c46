"""The process that forks the cells: what it forks is a process like any other, and without it all goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import tiny_llama_folder

from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.suites import runner, warm
from neuroada_cli.suites.schema import load_suite


def _suite(folder: Path) -> Path:
    values = {
        "name": "tiny",
        "device": "cpu",
        "model": {"path": str(tiny_llama_folder(folder / "llama")), "dtype": "fp32"},
        "data": {"task": "due_dates", "limit": 8, "validation_limit": 4, "max_length": 256},
        "train": {"epochs": 1, "batch_size": 4},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    suite = {
        "name": "one",
        "recipes": {"dates": str(folder / "tiny.yaml")},
        "variants": {"K=1": {}},
        "seeds": [3],
        "score": False,
    }
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump(suite), encoding="utf-8")
    return file


def test_a_forked_cell_is_trained_to_the_bits_of_one_started_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = load_suite(_suite(tmp_path))
    forked = runner.run(suite, tmp_path / "forked")
    monkeypatch.setattr(runner, "_forks", lambda recipe: False)
    alone = runner.run(suite, tmp_path / "alone")
    for one, other in zip(forked["runs"], alone["runs"], strict=True):
        for name in ("losses", "evaluations", "best_value", "trainable"):
            assert one["trained"][name] == other["trained"][name]
        assert one["trained"]["losses"]


def test_a_process_that_is_gone_is_told_and_done_without(tmp_path: Path) -> None:
    gone = warm.Warm(os.environ)
    cell = gone.start([str(tmp_path / "nothing")], tmp_path / "log.txt")
    os.kill(gone._process.pid, signal.SIGKILL)  # while it still imports
    assert cell.wait() == -signal.SIGKILL
    gone._reader.join()
    with pytest.raises(OSError, match="has ended"):
        gone.start([], tmp_path / "log.txt")
    gone.close()
    with contextlib.closing(runner._Runner(tmp_path, 1, False, runner.Console())) as started:
        started.warm = gone
        recipe = load_recipe(_suite(tmp_path).parent / "tiny.yaml")
        child = started._start(recipe, [str(tmp_path / "nothing")], tmp_path / "log.txt")
        assert isinstance(child, subprocess.Popen)
        assert child.wait() == 2, "no such recipe"
    assert "nothing" in (tmp_path / "log.txt").read_text()


def test_what_trusts_a_models_code_or_computes_elsewhere_is_started_by_itself(tmp_path: Path) -> None:
    recipe = load_recipe(_suite(tmp_path).parent / "tiny.yaml")
    assert runner._forks(recipe) == (sys.platform == "linux")
    trusting = recipe.model.model_copy(update={"trust_remote_code": True})
    assert not runner._forks(recipe.model_copy(update={"model": trusting}))
    assert not runner._forks(recipe.model_copy(update={"device": "cuda"}))


def test_signals_reach_a_forked_process_and_its_code_comes_back(tmp_path: Path) -> None:
    """Orders are obeyed by whoever forked, news of every end is told; here the cells are waiting children."""
    reads, writes = os.pipe()
    running: dict[int, int] = {}
    for number in range(2):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pause()
            os._exit(0)
        running[child] = number
    warm._obey({"signal": signal.SIGTERM, "to": 1}, running, writes)
    while 1 in running.values():
        warm._tell_ended(running, writes)
    assert json.loads(os.read(reads, 1000)) == {"ended": 1, "code": -signal.SIGTERM}
    assert list(running.values()) == [0]
    warm._obey({"signal": signal.SIGKILL, "to": 0}, running, writes)
    while running:
        warm._tell_ended(running, writes)
    assert json.loads(os.read(reads, 1000)) == {"ended": 0, "code": -signal.SIGKILL}
    os.close(reads)
    os.close(writes)
