"""Stopped or killed within an optimizer step, at every micro-batch of it: resumed, the same bits come out."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import child, code_of
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli import failures, files
from neuroada_cli.commands import train
from neuroada_cli.errors import Stopped
from neuroada_cli.loop import loop
from neuroada_cli.training import checkpoint
from neuroada_cli.training.log import read_metrics

STEPS, MICRO = 3, 4  # with dropout, rows of different lengths, and a checkpoint after every step
EVERY = range(1, STEPS * MICRO + 1)


class Run:
    """The same small training under several names, and how the one that nobody disturbed ended."""

    def __init__(self, room: Path) -> None:
        self.room, self.model = room, tiny_llama_folder(room / "llama")
        self.train("whole")
        self.expected = self.end_of("whole")

    def train(self, name: str, resume: bool = False) -> None:
        settings = {"micro_batch_size": 1, "max_steps": STEPS, "save_every": 1, "keep": 9}
        recipe = tiny_recipe(
            self.model, self.room / name, data={"limit": 12, "validation_limit": 2}, train=settings
        )
        train.run(recipe, resume=resume, quiet=True)

    def end_of(self, name: str) -> tuple[dict[str, str], list[Any]]:
        """Hashes of the last checkpoint's tensors, and the log but for what a clock or the machine says."""
        entries = files.verify_folder(self.room / name / "last")["files"]
        hashes = {file: entry["sha256"] for file, entry in entries.items() if file.endswith(".safetensors")}
        log = read_metrics(self.room / name / "metrics.jsonl")
        return hashes, [{k: v for k, v in e.items() if k not in ("seconds", "peak_bytes")} for e in log]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as `one_thread` does for the tests: another number sums in another order
    try:
        return Run(tmp_path_factory.mktemp("runs"))
    finally:
        torch.set_num_threads(before)


def within_micro_batch(number: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `act` after the forward pass of the `number`-th micro-batch of the process, 1 is the first."""
    counted = iter(range(1, 1000))
    original = loop.LOSSES["generation"]

    def loss(*args: Any) -> Any:
        found = original(*args)
        if next(counted) == number:
            act()
        return found

    monkeypatch.setitem(loop.LOSSES, "generation", loss)


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("micro_batch", EVERY)
def test_a_stop_in_any_micro_batch_changes_no_bit(
    micro_batch: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, number = f"stopped-{micro_batch}", (signal.SIGINT, signal.SIGTERM)[micro_batch % 2]
    step = 1 + (micro_batch - 1) // MICRO
    with monkeypatch.context() as patch:
        within_micro_batch(micro_batch, send(number), patch)
        with pytest.raises(Stopped, match=f"after step {step} of {STEPS}, everything saved") as caught:
            run.train(name)
    assert caught.value.exit_code == 128 + number
    assert os.readlink(run.room / name / "last") == f"checkpoint-{step}"
    run.train(name, resume=True)
    assert run.end_of(name) == run.expected


def ended(act: Callable[[], None]) -> int:
    """How a child process that acts ends, as a shell would say it."""

    def work() -> int:
        try:
            act()
        except BaseException as error:
            return failures.report(error)
        return 0

    code = code_of(child(work))
    return code if code >= 0 else 128 - code


@pytest.mark.parametrize("micro_batch", EVERY)
def test_a_kill_in_any_micro_batch_changes_no_bit(
    micro_batch: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"killed-{micro_batch}"
    with monkeypatch.context() as patch:
        within_micro_batch(micro_batch, send(signal.SIGKILL), patch)
        assert ended(functools.partial(run.train, name)) == 128 + signal.SIGKILL
    done = (micro_batch - 1) // MICRO
    newest = checkpoint.newest_complete(run.room / name)
    assert newest == (run.room / name / f"checkpoint-{done}" if done else None)
    run.train(name, resume=True)
    assert run.end_of(name) == run.expected


def test_two_interrupts_while_saving_end_it_at_once_and_lose_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of checkpoint-2: half of its files are written, none of the others will be."""
    saves = iter(range(1, 100))
    original = files.write_tensors

    def write_tensors(path: Path, *given: Any) -> Any:
        if path.name == checkpoint.OPTIMIZER.rpartition("/")[2] and next(saves) == 2:
            send(signal.SIGINT)()
            send(signal.SIGINT)()
        return original(path, *given)

    folder = run.room / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_tensors", write_tensors)
        assert ended(functools.partial(run.train, folder.name)) == 130
    assert os.readlink(folder / "last") == "checkpoint-1"
    assert not (folder / "checkpoint-2").exists()
    (half,) = folder.glob(".checkpoint-2.tmp-*")
    assert (half / "adapter_model.safetensors").is_file()
    assert not (half / files.MANIFEST).exists()
    run.train(folder.name, resume=True)
    assert run.end_of(folder.name) == run.expected
    assert not list(folder.glob(".*"))
