"""What a run says about itself while it runs: metrics.jsonl, and one live line (or plain lines in a log)."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from neuroada_cli import files
from neuroada_cli.data.batch import listed
from neuroada_cli.errors import ModelError
from neuroada_cli.training.spikes import SpikeWatch
from neuroada_cli.training.step import StepStats
from neuroada_cli.training.validate import Evaluation

SMOOTHING = 0.9  # of the shown loss and speed
PLAIN_LINES = 40  # lines of a whole run when nobody watches


class MetricsLog:
    """metrics.jsonl: one object per optimizer step ("train") and per evaluation ("eval")."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: dict[str, Any]) -> None:
        files.append_jsonl(self.path, entry)

    def settled(self) -> int:
        """Bytes so far, all of them on the disk: a checkpoint must not know of lines that may yet be lost."""
        return files.settle(self.path)

    def check(self, position: int) -> None:
        """Raises ModelError unless the first `position` bytes are whole entries, as they were at a save."""
        read_metrics(self.path, position)

    def cut(self, position: int) -> None:
        """Forget what was logged after a checkpoint, since those steps run again."""
        if self.path.exists() and self.path.stat().st_size > position:
            with files.explained(self.path):
                os.truncate(self.path, position)


def read_metrics(path: Path, nbytes: int | None = None) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl; a line torn by a kill at the very end is left out.

    nbytes  only those in the first so many bytes
    Raises ModelError naming the line that is no entry.
    """
    entries = files.read_jsonl(path, nbytes)
    for number, entry in enumerate(entries, start=1):
        if not _is_entry(entry):
            raise ModelError("is no entry of a training", f"{path}:{number}")
    return entries


def _is_entry(entry: Any) -> bool:
    """Whether everything is there that is read again, and is what it should be."""
    if not isinstance(entry, dict) or type(entry.get("step")) is not int or not _is_number(entry.get("loss")):
        return False
    if entry.get("kind") == "train":
        return _is_number(entry.get("lr")) and _is_number(entry.get("grad_norm"))
    metric, name = entry.get("metric"), entry.get("metric_name")
    named = metric is None if name is None else isinstance(name, str) and _is_number(metric)
    return entry.get("kind") == "eval" and named and type(entry.get("best")) is bool


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on CUDA, the process's largest resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB but on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class LiveReport:
    """The loop's reporter: logs every step and keeps one line up to date.

    Without a terminal it prints a plain line at the first, the last and about every 40th part of the run. A
    loss that jumps (`SpikeWatch` says when) is marked in the log and gets a line of its own.
    """

    def __init__(self, log: MetricsLog, device: torch.device, console: Console | None = None) -> None:
        self._log, self._device = log, device
        self._console = console or Console(stderr=True)
        self._smooth: dict[str, tuple[float, int]] = {}
        self._spikes: SpikeWatch | None = None
        self._started = time.monotonic()
        self._first_step: int | None = None
        columns = (
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}"), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        live = self._console.is_terminal and not self._console.quiet
        self._bar = Progress(*columns, console=self._console, disable=not live)
        self._task: TaskID | None = None

    def __enter__(self) -> LiveReport:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, stats: StepStats, total: int) -> None:
        memory = peak_memory(self._device)
        self._keep(stats, memory)
        speed = stats.tokens / max(stats.seconds, 1e-9)
        loss, speed = self._smoothed("loss", stats.loss), self._smoothed("speed", speed)
        line = f"loss {loss:.4f}  lr {stats.lr:.2e}  {speed:,.0f} tokens/s  {memory / 1e9:.2f} GB"
        if self._bar.disable:
            self._plain(stats.step, total, line)
            return
        if self._task is None:
            self._task = self._bar.add_task("train", total=total, completed=stats.step - 1, line="")
        self._bar.update(self._task, completed=stats.step, line=line)

    def _keep(self, stats: StepStats, memory: int) -> None:
        """The step's line in the log, and what is to be said of its loss."""
        if self._spikes is None:  # here the log is cut to where the run goes on
            before = [entry["loss"] for entry in read_metrics(self._log.path) if entry["kind"] == "train"]
            self._spikes = SpikeWatch(before)
        entry = {"kind": "train", **asdict(stats), "peak_bytes": memory}
        numbers = entry.pop("row_numbers")
        usual = self._spikes.usual_before(stats.loss)
        self._log.append(entry if usual is None else entry | {"spike": True})
        if usual is not None:
            line = f"step {stats.step}: the loss jumps to {stats.loss:.4f}, from {usual:.4f} on average"
            self._console.print(f"{line}; rows {listed(numbers)}", style="yellow", soft_wrap=True)

    def evaluation(self, step: int, evaluation: Evaluation, is_best: bool) -> None:
        self._log.append({"kind": "eval", "step": step, **asdict(evaluation), "best": is_best})
        shown = f"validation loss {evaluation.loss:.4f}"
        if evaluation.metric is not None:
            shown += f", {evaluation.metric_name} {evaluation.metric:.4f}"
        self._console.print(f"step {step}: {shown}{' (best so far)' if is_best else ''}", highlight=False)

    def _smoothed(self, name: str, value: float) -> float:
        """A plain mean over the first steps, a moving one afterwards."""
        mean, count = self._smooth.get(name, (0.0, 0))
        weight = min(SMOOTHING, count / (count + 1))
        self._smooth[name] = weight * mean + (1 - weight) * value, count + 1
        return self._smooth[name][0]

    def _plain(self, step: int, total: int, line: str) -> None:
        if self._first_step is None:
            self._first_step = step - 1
        if step - 1 == self._first_step or step == total or step % max(1, total // PLAIN_LINES) == 0:
            per_step = (time.monotonic() - self._started) / (step - self._first_step)
            minutes, seconds = divmod(round(per_step * (total - step)), 60)
            self._console.print(f"step {step}/{total}  {line}  {minutes}:{seconds:02d} left", highlight=False)
