"""What a run says about itself while it runs: one live line, or plain lines in a log."""

from __future__ import annotations

import time
from dataclasses import asdict
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from neuroada_cli.data.batch import listed
from neuroada_cli.loop.spikes import SpikeWatch
from neuroada_cli.loop.step import StepStats
from neuroada_cli.loop.unreached import described
from neuroada_cli.loop.validate import Evaluation
from neuroada_cli.machine.memory import peak_memory
from neuroada_cli.training.log import MetricsLog, read_metrics

SMOOTHING = 0.9  # of the shown loss and speed
PLAIN_LINES = 40  # lines of a whole run when nobody watches


class SilentReport:
    """The reporter of a rank that is not the first: the first one says it all."""

    def __enter__(self) -> SilentReport:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was begun."""

    def step(self, stats: StepStats, total: int) -> None:
        """Said by rank 0."""

    def evaluation(self, step: int, evaluation: Evaluation, is_best: bool) -> None:
        """Said by rank 0."""


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
        if stats.unreached is not None and stats.unreached.names:
            line = f"step {stats.step}: {described(stats.unreached)}"
            self._console.print(line, style="yellow", highlight=False, soft_wrap=True)
        done, what = (stats.tokens, "tokens") if stats.tokens else (stats.rows, "rows")
        speed = done / max(stats.seconds, 1e-9)
        loss, speed = self._smoothed("loss", stats.loss), self._smoothed("speed", speed)
        line = f"loss {loss:.4f}  lr {stats.lr:.2e}  {speed:,.0f} {what}/s  {memory / 1e9:.2f} GB"
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
            for loss in before:  # so that a resumed run shows what the undisturbed one does
                self._smoothed("loss", loss)
        entry = {"kind": "train", **asdict(stats), "peak_bytes": memory}
        numbers = entry.pop("row_numbers")
        del entry["unreached"]
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
