"""How far work is that takes longer than one likes to look at nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

FEW = 500  # pieces that take no time


@contextmanager
def counting(what: str, total: int, console: Console | None) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, gone when it is full; inside, the yielded function is told how many more are done.

    console  None: nothing is shown, as on one that is no terminal, or quiet
    """
    shows = console is not None and console.is_terminal and not console.quiet and total > FEW
    if not shows:
        yield lambda more: None
        return
    columns = (TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)
