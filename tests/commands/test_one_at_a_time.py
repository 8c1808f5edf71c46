"""Two processes on one output: one does it, the others end with 7 and say who; nothing of a killed one stays.

The first process really is in the middle of its work: it stops itself (SIGSTOP) there.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked import child, code_of
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401  (the fixture is used by all)
from trees import tree

from neuroada_cli import failures, files, stopping
from neuroada_cli.commands import bench, merge, select, train
from neuroada_cli.commands import eval as evaluate
from neuroada_cli.errors import OutputError
from neuroada_cli.selection.file import read_selection
from neuroada_cli.training.checkpoint import newest_complete


@dataclass(frozen=True)
class Job:
    """act does the work; `module.step` is a function in the middle of it; whole raises unless it is done."""

    act: Callable[[], object]
    module: Any
    step: str
    whole: Callable[[], object]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def jobs(model: Path, tmp_path: Path) -> dict[str, Job]:
    out = tmp_path / "room" / "out"
    small = {"limit": 8, "validation_limit": 4}
    recipe = tiny_recipe(model, tmp_path / "run", data=small, train={"epochs": 1})
    train.run(recipe, quiet=True)
    fresh = tiny_recipe(model, out, data=small, train={"epochs": 1})
    chosen, measured = out / "selection.safetensors", tmp_path / "bench.json"
    return {
        "train": Job(
            lambda: train.run(fresh, quiet=True), train, "fit", lambda: verified(newest_complete(out))
        ),
        "select": Job(
            lambda: select.run(fresh, quiet=True), select, "_choose", lambda: read_selection(chosen)
        ),
        "select --out": Job(
            lambda: select.run(fresh, out, quiet=True), select, "_choose", lambda: read_selection(out)
        ),
        "merge": Job(
            lambda: merge.run(tmp_path / "run", out, quiet=True), merge, "_refuse_unchanged",
            lambda: files.verify_folder(out),
        ),
        "eval": Job(
            lambda: evaluate.run(
                str(model), fresh, ["due_dates"], out=out, limit=2, max_new_tokens=2, quiet=True
            ),
            evaluate, "score", lambda: (out / "results.json").read_text(encoding="utf-8"),
        ),
        "bench": Job(
            lambda: bench.run(
                fresh, compare=(), batch=2, sequence=16, rounds=1, warmup=0, json_out=measured, quiet=True
            ),
            bench, "measure", lambda: files.read_json(measured),
        ),
    }  # fmt: skip


JOBS = ("train", "select", "select --out", "merge", "eval")
STOPPED = (*(name for name in JOBS if name != "train"), "bench")  # training saves a checkpoint instead


def ended(act: Callable[[], object]) -> int:
    """How the command line would end (in a child: a signal ends it)."""
    stopping.install()
    try:
        act()
    except BaseException as error:
        return failures.report(error)
    return 0


@contextmanager
def stopped_in_the_middle(job: Job) -> Iterator[int]:
    """The pid of a child that works and has stopped in the middle; afterwards it is gone."""
    original = getattr(job.module, job.step)

    def step(*args: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return original(*args, **keywords)

    def work() -> int:
        setattr(job.module, job.step, step)
        return ended(job.act)

    pid = child(work)
    try:
        _, status = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"ended with {os.waitstatus_to_exitcode(status)} before the middle"
        yield pid
    finally:
        with suppress(ProcessLookupError, ChildProcessError):  # unless the test has seen its end
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def refused(job: Job, pid: int) -> None:
    with pytest.raises(OutputError) as caught:
        job.act()
    assert caught.value.exit_code == 7
    assert f"is in use by process {pid} on {socket.gethostname()}" in caught.value.line()


@pytest.mark.parametrize("name", JOBS)
def test_the_second_is_told_who_and_the_first_goes_on(
    jobs: dict[str, Job], name: str, tmp_path: Path
) -> None:
    job = jobs[name]
    with stopped_in_the_middle(job) as pid:
        before = tree(tmp_path)
        refused(job, pid)
        assert tree(tmp_path) == before
        os.kill(pid, signal.SIGCONT)
        assert code_of(pid) == 0
    job.whole()
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("name", JOBS)
def test_a_killed_one_is_no_obstacle_and_nothing_of_it_stays(
    jobs: dict[str, Job], name: str, tmp_path: Path
) -> None:
    job = jobs[name]
    with stopped_in_the_middle(job) as pid:
        assert list(tmp_path.rglob(".*"))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    job.act()
    job.whole()
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("number", stopping.SIGNALS)
@pytest.mark.parametrize("name", STOPPED)
def test_a_signal_leaves_everything_as_it_was(
    jobs: dict[str, Job], name: str, number: int, tmp_path: Path
) -> None:
    before = tree(tmp_path)
    with stopped_in_the_middle(jobs[name]) as pid:
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)
        assert code_of(pid) == 128 + number
    assert tree(tmp_path) == before
    jobs[name].act()
    jobs[name].whole()


def test_a_selection_does_not_change_under_a_training(jobs: dict[str, Job]) -> None:
    with stopped_in_the_middle(jobs["train"]) as pid:
        refused(jobs["select"], pid)


def test_of_many_trainings_started_at_once_one_trains(model: Path, tmp_path: Path) -> None:
    small = {"limit": 4, "validation_limit": 2}
    recipe = tiny_recipe(model, tmp_path / "run", data=small, train={"epochs": 1})
    gate, opened = os.pipe()

    def work() -> int:
        os.close(opened)
        os.read(gate, 1)  # until all of them are there
        return ended(lambda: train.run(recipe, quiet=True))

    children = [child(work) for _ in range(12)]
    os.close(opened)
    codes = Counter(code_of(pid) for pid in children)
    assert codes == {0: 1, 7: 11}

    other = tiny_recipe(model, tmp_path / "alone", data=small, train={"epochs": 1})
    train.run(other, quiet=True)
    found, alone = newest_complete(tmp_path / "run"), newest_complete(tmp_path / "alone")
    assert found is not None
    assert alone is not None
    assert found.name == alone.name
    for name in ("adapter_model.safetensors", "state/optimizer.safetensors", "state/rng.safetensors"):
        assert (found / name).read_bytes() == (alone / name).read_bytes()
    assert not list((tmp_path / "run").glob(".*"))


def verified(checkpoint: Path | None) -> None:
    assert checkpoint is not None
    files.verify_folder(checkpoint)
