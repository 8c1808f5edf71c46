"""`--processes 2`, as a person types it: one line and one exit code for whatever happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import tiny_llama_folder, tiny_recipe

from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.training.log import read_metrics

ROOT = Path(__file__).parents[2]
BOUND = 300  # seconds in which all have to end when one has died


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that would train for minutes."""
    folder = tmp_path_factory.mktemp("run")
    model = tiny_llama_folder(folder / "model", attention_dropout=0.0)
    train = {"epochs": 1000, "save_every": 10, "eval_every": 1000}
    file = folder / "r.yaml"
    file.write_text(to_yaml(tiny_recipe(model, folder / "run", train=train)))
    return file


def start(recipe: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "neuroada_cli", "train", str(recipe), "--out", str(out), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    """The ranks, in the order in which they were started."""
    stats = {int(p.parent.name): p.read_text() for p in Path("/proc").glob("[0-9]*/stat") if p.exists()}
    return sorted(
        pid for pid, stat in stats.items() if int(stat.rpartition(")")[2].split()[1]) == process.pid
    )


def steps(run: Path) -> list[int]:
    """The optimizer steps in the log."""
    return [entry["step"] for entry in read_metrics(run / "metrics.jsonl") if entry["kind"] == "train"]


def wait_for_steps(process: subprocess.Popen[str], count: int = 1) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        found = re.match(r"step (\d+)/", line)
        if found and int(found[1]) >= count:
            return
    raise AssertionError(f"ended with {process.wait()} before step {count}")


def test_a_killed_rank_a_stop_and_going_on(recipe: Path, tmp_path: Path) -> None:
    """One run: rank 1 is killed, then the launcher is asked to stop, then it ends."""
    out = tmp_path / "run"
    process = start(recipe, out, "--processes", "2")
    wait_for_steps(process)
    os.kill(children(process)[1], signal.SIGKILL)
    _, said = process.communicate(timeout=BOUND)
    assert process.returncode == 8
    assert said.splitlines()[-1] == (
        "error: process 1 was killed by SIGKILL, so the others were ended, too; go on with --resume"
    )
    assert not list(out.glob(".checkpoint*"))

    process = start(recipe, out, "--processes", "2", "--resume")
    wait_for_steps(process)
    process.terminate()
    _, said = process.communicate(timeout=BOUND)
    assert process.returncode == 143, said
    stopped = re.fullmatch(
        r"stopped by SIGTERM after step (\d+) of 6000, everything saved; go on with --resume",
        said.splitlines()[-1],
    )
    assert stopped is not None
    assert (out / "last").readlink() == Path(f"checkpoint-{stopped[1]}")
    assert steps(out)[-1] == int(stopped[1])


@pytest.mark.slow
def test_a_rank_killed_at_random_moments() -> None:
    """A few of those of `make killed-ranks`: nothing half written, the end of a run that was never killed."""
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), "6"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wrong_words_are_refused_once_by_the_launcher(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, tmp_path / "run", "--processes", "2", "--set", "optim.rl=1")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(said.splitlines()) == 1
