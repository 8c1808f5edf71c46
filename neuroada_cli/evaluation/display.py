"""What an evaluation shows: a bar while it runs, a table at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from neuroada_cli.evaluation.results import Prediction, TaskResult
from neuroada_cli.foreign_text import shown
from neuroada_cli.show.notes import say
from neuroada_cli.tasks import answers, metrics
from neuroada_cli.tasks.task import BY_LOSS, Task

UNPROMPTED = "0 by design: the method edits prompts alone, and plain text has none"
HEADINGS = (
    "rows", "score", "metric", "loss", "ROUGE-L", "ROUGE-1", "strict", "majority", "no answer", "leaked",
    "rows/s",
)  # fmt: skip


class Bar:
    """Rows done and the share that is correct so far."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=total, accuracy="")
        self._rows = self._correct = 0

    def advance(self, batch: Sequence[Prediction]) -> None:
        self._rows += len(batch)
        self._correct += sum(prediction.correct for prediction in batch)
        by_loss = any(prediction.loss is not None for prediction in batch)
        share = f"{self._correct / self._rows:.1%} correct" if self._rows and not by_loss else ""
        self._progress.update(self._task, completed=self._rows, accuracy=share)


@contextmanager
def bar(console: Console, name: str, total: int) -> Iterator[Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    share = TextColumn("{task.fields[accuracy]}")
    silent = not console.is_terminal  # else an empty line is left in a log
    with Progress(*columns, share, console=console, transient=True, disable=silent) as progress:
        yield Bar(progress, name, total)


def tell_unscored(tasks: Sequence[Task], protocol: str, console: Console) -> None:
    """One line for each column that will be missing, since it needs a package."""
    scorers = [task.scoring[protocol].strict for task in tasks if task.kind == "generation"]
    if answers.strict_number in scorers and not answers.can_verify():
        console.print("no strict column for numbers: pip install 'neuroada-cli[strict]'", markup=False)
    if any("rouge_l" in task.metrics for task in tasks) and not metrics.can_rouge():
        console.print("no ROUGE columns: pip install 'neuroada-cli[rouge]'", markup=False)


def tell_cut(result: TaskResult, length: int, max_length: int, console: Console) -> None:
    """One line where texts are longer than what is scored of them.

    length  tokens of that; max_length: what the recipe allows, of which the model may take less
    """
    if result.cut:
        most = f"data.max_length={length}" if length == max_length else f"the {length} tokens of the model"
        line = f"{result.task}: {result.cut:,} of {result.n:,} rows are longer than {most}"
        say(console, f"{line}, and scored without the rest")


def tell_forgetting(result: TaskResult, source: str, console: Console, in_prompts: bool = False) -> None:
    """in_prompts  what was trained changes prompts alone, and these texts have none"""
    before, after = result.metrics["loss_before"], result.metrics["loss_after"]
    say(
        console,
        f"forgetting: {result.score:+.4f}, from {before:.4f} of the base to {after:.4f} (loss per token of "
        f"{result.n:,} rows of {shown(source)})",
    )
    if in_prompts:
        say(console, UNPROMPTED)


def tell_unasked(result: TaskResult, found: Sequence[Prediction], console: Console) -> None:
    """One line where prompts fill the model's context by themselves."""
    if result.unasked:
        first = next(prediction.row for prediction in found if not prediction.asked)
        say(
            console,
            f"{result.task}: {result.unasked:,} of {result.n:,} prompts fill the model's context by "
            f"themselves, so they count as not answered (the first is row {first})",
        )


def table(results: dict[str, TaskResult], title: str) -> Table:
    """Scores in percent, in 80 columns: what holds for no task, or is the same for all, has no column.

    "leaked" is the share of rows whose question was trained on, where that is known.
    """
    headings, rows, score = _chosen(results)
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("task", no_wrap=True)
    for heading in headings:
        name = score if heading == "score" else heading
        shown.add_column(name, justify="right" if heading != "metric" else "left")
    for name, cells in rows.items():
        style = "yellow" if results[name].clean is False else None
        shown.add_row(name, *(cells[heading] for heading in headings), style=style)
    if len(results) > 1 and not any(result.metric in BY_LOSS for result in results.values()):
        _add_means(shown, list(results.values()))
    return shown


def plain_table(results: Mapping[str, TaskResult]) -> tuple[list[str], list[list[str]]]:
    """The same as (headings, rows of words)."""
    headings, rows, score = _chosen(results)
    names = ["task", *(score if heading == "score" else heading for heading in headings)]
    return names, [[name, *(cells[heading] for heading in headings)] for name, cells in rows.items()]


def _chosen(results: Mapping[str, TaskResult]) -> tuple[list[str], dict[str, dict[str, str]], str]:
    """(columns that say something, task -> column -> cell, what the score's column is called)."""
    rows = {name: _cells(result) for name, result in results.items()}
    kinds = {result.metric for result in results.values()}
    score = kinds.pop() if len(kinds) == 1 else "score"
    headings = [h for h in HEADINGS if any(cells[h] for cells in rows.values())]
    if score != "score":
        headings.remove("metric")
    return headings, rows, score


def _cells(result: TaskResult) -> dict[str, str]:
    speed = f"{result.n / result.seconds:.1f}" if result.seconds else ""
    texts = (
        f"{result.n:,}",
        _percent(result.score) if result.metric not in BY_LOSS else f"{result.score:.3f}",
        result.metric,
        f"{result.metrics['loss']:.4f}" if "loss" in result.metrics else "",
        _percent(result.metrics.get("rouge_l")),
        _percent(result.metrics.get("rouge_1")),
        _percent(result.strict),
        _percent(result.majority),
        "" if result.metric in BY_LOSS else str(result.unparsed),
        _leaked(result),
        speed,
    )
    return dict(zip(HEADINGS, texts, strict=True))


def _add_means(shown: Table, results: Sequence[TaskResult]) -> None:
    """The mean of all tasks, and apart from it that of the clean ones."""
    shown.add_section()
    shown.add_row("mean", "", _percent(_mean(results)), style="bold")
    clean = [result for result in results if result.clean]
    if 0 < len(clean) < len(results):
        shown.add_row(f"mean of {len(clean)} clean", "", _percent(_mean(clean)), style="bold")


def _mean(results: Sequence[TaskResult]) -> float:
    return sum(result.score for result in results) / len(results)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _leaked(result: TaskResult) -> str:
    if not result.leaked:
        return "" if result.leaked is None else "0"
    share = result.leaked / result.n
    return f"{share:.0%}" if share >= 0.005 else "<1%"
