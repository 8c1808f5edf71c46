"""`neuroada recipes paper`: the paper's tables beside our results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from neuroada_cli.evaluation.published import PaperRow
from neuroada_cli.foreign_text import printable, shown
from neuroada_cli.show.notes import say

SHORT = {"social_i_qa": "siqa", "ARC-Easy": "arc-e", "ARC-Challenge": "arc-c", "openbookqa": "obqa"}


def paper(runs: Path) -> None:
    """The paper's two tables, each row above ours from RUNS/RECIPE/eval. Raises DataError."""
    from neuroada_cli.evaluation import published

    console = Console()
    for name, rows in published.tables(runs).items():
        console.print(_paper_table(f"{name}: published (arXiv:2510.18940) and ours, %", rows))
        if leaked := rows[0].leaked:
            clean = [task for task in rows[0].published if task not in leaked]
            say(
                console,
                f"* the training set asks most of these test questions, so they measure memory, too; "
                f"clean {len(clean)}: the mean of {', '.join(clean)}",
            )
        for row in rows:
            if row.own_average is not None:
                said = f"its scores have the mean {row.own_average:.1f}, the paper prints {row.average:.1f}"
                say(console, f"{row.recipe}: {said}")
            for note in row.notes:
                line = printable(f"{row.recipe}: not comparable: {note}")
                say(console, line, style="yellow", markup=False)
        missing = sum(row.ours is None for row in rows)
        say(
            console,
            f"{missing} of {len(rows)} rows have no result of ours in {shown(runs)}: "
            "neuroada train RECIPE, then neuroada eval runs/RECIPE\n",
            style="dim",
        )


def _paper_table(title: str, rows: Sequence[PaperRow]) -> Table:
    """Tasks that leaked into training are marked, and a mean without them stands behind the mean of all."""
    leaked, tasks = rows[0].leaked, list(rows[0].published)
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    headings = [SHORT.get(task, task[:5]) + "*" * (task in leaked) for task in tasks]
    for heading in (*headings, "mean", *([f"clean {len(tasks) - len(leaked)}"] if leaked else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        means = [row.average, row.clean] if leaked else [row.average]
        table.add_row(row.recipe, *(_percent(score) for score in (*row.published.values(), *means)))
        if row.ours is not None:
            ours = [row.ours.get(task) for task in tasks]
            own = [row.our_average, row.our_clean] if leaked else [row.our_average]
            table.add_row("  ours", *(_percent(score) for score in (*ours, *own)), style="cyan")
    return table


def _percent(score: float | None) -> str:
    return "–" if score is None else f"{score:.1f}"
