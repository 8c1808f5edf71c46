"""Save, kill, clean, resume in any order, against a plain model of what must be there."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from counting import record, scale
from forked import child
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from neuroada_cli import files
from neuroada_cli.adapter.folder import read_adapter
from neuroada_cli.loop import optimizer_state
from neuroada_cli.loop.loop import Progress
from neuroada_cli.training.checkpoint import newest_complete, newest_opened

from scenarios import _training  # isort: skip  (beside this file)

KEEP = 2
tried: Counter[str] = Counter()


class Checkpoints(RuleBasedStateMachine):
    """The model: the step that was last said to be saved, the best one, and a step that may have made it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.step = 0
        self.said = 0
        self.perhaps = 0
        self.best = 0

    def _save(self, step: int, best: int) -> None:
        checkpoints, (model, method, optimizer) = _training()
        for parameter in method.parameters(model):  # type: ignore[attr-defined]
            parameter.data.fill_(float(step))
            for tensor in optimizer.state[parameter].values():  # type: ignore[attr-defined]
                tensor.fill_(float(step))
        mine = dataclasses.replace(checkpoints, run_dir=self.folder, keep=KEEP)
        progress = Progress(step=step, best=1.0, best_step=best)
        mine.save(progress, model, method, optimizer)  # type: ignore[arg-type]

    @rule(is_best=st.booleans())
    def save(self, is_best: bool) -> None:
        tried["saves"] += 1
        self.step += 1
        best = self.step if is_best or not self.best else self.best
        self._save(self.step, best)
        self.said, self.perhaps, self.best = self.step, 0, best

    @precondition(lambda self: self.best)
    @rule(moment=st.floats(0, 0.03))
    def killed_while_saving(self, moment: float) -> None:
        tried["kills"] += 1
        self.step += 1
        pid = child(lambda: self._save(self.step, self.best))
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.perhaps = self.step
        newest = newest_complete(self.folder)
        assert newest is not None
        found = int(newest.name.rpartition("-")[2])
        assert found in (self.said, self.perhaps)
        self.said = found  # a resumed run goes on from what it finds

    @precondition(lambda self: self.said)
    @rule()
    def resumed(self) -> None:
        """By the reader of a real resume, into parts that hold something else."""
        tried["resumes"] += 1
        checkpoints, (model, method, optimizer) = _training()
        for parameter in method.parameters(model):  # type: ignore[attr-defined]
            parameter.data.fill_(-7.0)
            for tensor in optimizer.state[parameter].values():  # type: ignore[attr-defined]
                tensor.fill_(-7.0)
        newest = newest_opened(self.folder)
        mine = dataclasses.replace(checkpoints, run_dir=self.folder, keep=KEEP, source=newest)
        progress = mine.restore(model, method, optimizer)  # type: ignore[arg-type]
        assert (progress.step, progress.best) == (self.said, 1.0)
        assert progress.best_step in (self.best, self.said)
        held = [*method.parameters(model)]  # type: ignore[attr-defined]
        held += optimizer_state.tensors_of(optimizer).values()  # type: ignore[arg-type]
        assert all(torch.equal(tensor, torch.full_like(tensor, float(self.said))) for tensor in held)
        assert os.readlink(self.folder / "last") == f"checkpoint-{self.said}"

    @rule()
    def cleaned(self) -> None:
        files.clean_stale(self.folder)
        assert not [entry.name for entry in self.folder.iterdir() if ".tmp-" in entry.name]

    @invariant()
    def newest_is_whole_and_right(self) -> None:
        newest = newest_complete(self.folder)
        if not self.said:
            assert newest is None
            return
        assert newest is not None
        assert newest.name == f"checkpoint-{self.said}"
        first = next(iter(read_adapter(newest).deltas.values()))
        assert torch.equal(first, torch.full_like(first, float(self.said)))

    @invariant()
    def best_and_last_are_never_lost(self) -> None:
        if self.best:
            files.verify_folder(self.folder / f"checkpoint-{self.best}")
            files.verify_folder(self.folder / "last")

    @precondition(lambda self: self.said and not self.perhaps)
    @invariant()
    def older_ones_are_pruned(self) -> None:
        kept = {int(p.name.rpartition("-")[2]) for p in self.folder.glob("checkpoint-*")}
        assert self.said in kept
        assert len(kept - {self.best}) <= KEEP

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


TestCheckpoints = Checkpoints.TestCase
TestCheckpoints.settings = settings(
    max_examples=scale(25, 250),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_histories_were_long_enough() -> None:
    """After the state machine, in this order."""
    assert tried["kills"] > 10
    assert tried["resumes"] > 10
    record("random orders of save, kill, resume, clean and prune", dict(tried))
