"""What a run says about itself while it runs: two live lines, plain lines in a log, or JSON for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from types import TracebackType
from typing import Any, TextIO

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from neuroada_cli.data.batch import listed
from neuroada_cli.foreign_text import shown as as_shown
from neuroada_cli.loop.spikes import SpikeWatch
from neuroada_cli.loop.standstill import Standstill
from neuroada_cli.loop.step import StepStats
from neuroada_cli.loop.unreached import described
from neuroada_cli.loop.validate import Evaluation
from neuroada_cli.machine.memory import peak_memory
from neuroada_cli.show.notes import say
from neuroada_cli.show.numbers import clock
from neuroada_cli.training.log import MetricsLog, read_metrics
from neuroada_cli.training.samples import Sampler
from neuroada_cli.training.trackers import Track

SMOOTHING = 0.9  # of the smoothed loss and of the speed
PLAIN_LINES = 40  # lines of a whole run when nobody watches
ASKED, ANSWERED = 60, 240  # characters of a sample that are shown
STANDING = {"train": 10, "eval": 2}  # losses in a row that are one number before it is said
NO_EFFECT = "what trains does not change it; check select.targets, optim.lr and model.dtype"


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


class _TwoLines(Progress):
    """How far the run is, and below it the last step's figures: together within 80 columns."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.figures, no_wrap=True, overflow="ellipsis")


class LiveReport:
    """The loop's reporter: logs every step and keeps two lines up to date.

    Without a terminal it prints a plain line at the first, the last and about every 40th part of the run. A
    loss that jumps (`SpikeWatch` says when) is marked in the log and gets a line of its own.
    samples asked at every evaluation
    stream  for programs: every entry of the log as a JSON object a line, as it comes, and no other line
    """

    def __init__(
        self,
        log: MetricsLog,
        device: torch.device,
        console: Console | None = None,
        stream: TextIO | None = None,
        track: Track | None = None,
        samples: Sampler | None = None,
    ) -> None:
        self._log, self._device, self._stream, self._track = log, device, stream, track
        self._samples = samples
        self._console = console or Console(stderr=True)
        self._smooth: dict[str, tuple[float, int]] = {}
        self._spikes: SpikeWatch | None = None
        self._still: dict[str, Standstill] = {}
        self._started = time.monotonic()
        self._first_step: int | None = None
        columns = (
            TextColumn("step {task.completed:.0f} of {task.total:.0f}"), BarColumn(bar_width=24),
            TextColumn("{task.percentage:.0f} %"), TextColumn("{task.fields[left]} left"),
        )  # fmt: skip
        live = self._console.is_terminal and not self._console.quiet and stream is None
        self._bar = _TwoLines(*columns, console=self._console, disable=not live)
        self._task: TaskID | None = None

    def __enter__(self) -> LiveReport:
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._bar.disable:  # rich 14.0 ends even one that was never shown with a line break
            self._bar.stop()

    def step(self, stats: StepStats, total: int) -> None:
        memory = peak_memory(self._device)
        self._keep(stats, memory)
        if stats.unreached is not None and stats.unreached.names:
            line = f"step {stats.step}: {described(stats.unreached)}"
            say(self._console, line, style="yellow")
        done, what = (stats.tokens, "tokens") if stats.tokens else (stats.rows, "rows")
        speed = self._smoothed("speed", done / max(stats.seconds, 1e-9))
        smoothed = self._smoothed("loss", stats.loss)
        line = (
            f"loss {stats.loss:.4f}  smoothed {smoothed:.4f}  lr {stats.lr:.1e}  grad {stats.grad_norm:.3g}  "
            f"{speed:,.0f} {what}/s  {memory / 1e9:.2f} GB"
        )
        if self._first_step is None:
            self._first_step = stats.step - 1
            self._task = self._bar.add_task("train", total=total, completed=self._first_step, left="?")
        left = self._left(stats.step, total)
        if self._bar.disable:
            self._plain(stats.step, total, f"{line}  {left} left")
            return
        assert self._task is not None
        self._bar.figures = line
        self._bar.update(self._task, completed=stats.step, left=left)

    def _left(self, step: int, total: int) -> str:
        per_step = (time.monotonic() - self._started) / (step - (self._first_step or 0))
        return clock(per_step * (total - step))

    def _keep(self, stats: StepStats, memory: int) -> None:
        """The step's line in the log, and what is to be said of its loss."""
        if self._spikes is None:  # here the log is cut to where the run goes on
            before = self._logged("train")
            self._spikes = SpikeWatch(before)
            for loss in before:  # so that a resumed run shows what the undisturbed one does
                self._smoothed("loss", loss)
        entry = {"kind": "train", **asdict(stats), "peak_bytes": memory}
        numbers = entry.pop("row_numbers")
        del entry["unreached"]
        usual = self._spikes.usual_before(stats.loss)
        stands = self._watch("train").stands(stats.loss)
        self._append(entry if usual is None else entry | {"spike": True})
        if usual is not None:
            line = f"step {stats.step}: the loss jumps to {stats.loss:.4f}, from {usual:.4f} on average"
            say(self._console, f"{line}; rows {listed(numbers)}", style="yellow")
        if stands:
            line = f"step {stats.step}: the loss has been {stats.loss:.6g} for {STANDING['train']} steps"
            say(self._console, f"{line}: {NO_EFFECT}", style="yellow")

    def _logged(self, kind: str) -> list[float]:
        return [entry["loss"] for entry in read_metrics(self._log.path) if entry["kind"] == kind]

    def _watch(self, kind: str) -> Standstill:
        """Asked for before the loss in question is logged: here the log is cut to where the run goes on."""
        if kind not in self._still:
            self._still[kind] = Standstill(STANDING[kind], self._logged(kind))
        return self._still[kind]

    def _append(self, entry: dict[str, Any]) -> None:
        self._log.append(entry)
        if self._track is not None and entry["kind"] != "sample":
            self._track.entry(entry)
        if self._stream is not None:
            print(json.dumps(entry), file=self._stream, flush=True)

    def evaluation(self, step: int, evaluation: Evaluation, is_best: bool) -> None:
        stands = self._watch("eval").stands(evaluation.loss)
        self._append({"kind": "eval", "step": step, **asdict(evaluation), "best": is_best})
        self._say_evaluation(step, evaluation, is_best, stands)
        for sample in self._samples() if self._samples is not None else ():
            self._append({"kind": "sample", "step": step, **asdict(sample)})
            if self._stream is None:
                say(
                    self._console,
                    f"  row {sample.row} is asked …{_excerpt(sample.prompt, -ASKED)}",
                    style="dim",
                )
                say(self._console, f"  and answered {_excerpt(sample.answer, ANSWERED)}")

    def _say_evaluation(self, step: int, evaluation: Evaluation, is_best: bool, stands: bool) -> None:
        if self._stream is not None:
            return
        shown = f"validation loss {evaluation.loss:.4f}"
        if evaluation.metric is not None:
            shown += f", {evaluation.metric_name} {evaluation.metric:.4f}"
        self._console.print(f"step {step}: {shown}{' (best so far)' if is_best else ''}", highlight=False)
        if stands:
            line = f"step {step}: the validation loss is exactly what it was before: {NO_EFFECT}"
            say(self._console, line, style="yellow")

    def _smoothed(self, name: str, value: float) -> float:
        """A plain mean over the first steps, a moving one afterwards."""
        mean, count = self._smooth.get(name, (0.0, 0))
        weight = min(SMOOTHING, count / (count + 1))
        self._smooth[name] = weight * mean + (1 - weight) * value, count + 1
        return self._smooth[name][0]

    def _plain(self, step: int, total: int, line: str) -> None:
        first = step - 1 == self._first_step
        due = first or step == total or step % max(1, total // PLAIN_LINES) == 0
        if due and self._stream is None:
            say(self._console, f"step {step}/{total}  {line}")


def _excerpt(text: str, characters: int) -> str:
    """So many characters of its beginning, or if negative of its end, on one line and fit for a terminal."""
    line = " ".join(text.split())
    if characters < 0:
        return as_shown(line[characters:])
    return as_shown(line if len(line) <= characters else f"{line[:characters]}…")
