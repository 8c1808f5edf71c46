"""What an evaluation shows: a bar while it runs, a table at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from neuroada_cli.evaluation.run import Prediction, TaskResult


class Bar:
    """Rows done and the share that is correct so far."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=total, accuracy="")
        self._rows = self._correct = 0

    def advance(self, batch: Sequence[Prediction]) -> None:
        self._rows += len(batch)
        self._correct += sum(prediction.correct for prediction in batch)
        share = f"{self._correct / self._rows:.1%} correct" if self._rows else ""
        self._progress.update(self._task, completed=self._rows, accuracy=share)


@contextmanager
def bar(console: Console, name: str, total: int) -> Iterator[Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    share = TextColumn("{task.fields[accuracy]}")
    silent = not console.is_terminal  # else an empty line is left in a log
    with Progress(*columns, share, console=console, transient=True, disable=silent) as progress:
        yield Bar(progress, name, total)


def table(results: dict[str, TaskResult], title: str) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("task")
    for heading in ("rows", "score", "metric", "strict", "majority", "no answer", "rows/s"):
        shown.add_column(heading, justify="right" if heading != "metric" else "left")
    for name, result in results.items():
        shown.add_row(
            name,
            f"{result.n:,}",
            f"{100 * result.score:.1f}",
            result.metric,
            "" if result.strict is None else f"{100 * result.strict:.1f}",
            "" if result.majority is None else f"{100 * result.majority:.1f}",
            str(result.unparsed),
            f"{result.n / result.seconds:.1f}" if result.seconds else "",
        )
    if len(results) > 1:
        mean = sum(r.score for r in results.values()) / len(results)
        shown.add_section()
        shown.add_row("mean", "", f"{100 * mean:.1f}", style="bold")
    return shown
