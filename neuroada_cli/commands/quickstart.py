"""The newcomer's run: select, score the base, train, score the adapter, merge, score the merged folder.

Each step is the command of that name with the same recipe; what is added here is the order, the check that
the merged model answers like the trained one, and one table at the end.

    runs/quickstart/selection.safetensors   what `select` chose
                    train/                  the run: checkpoints, metrics.jsonl, training.png
                    merged/                 the plain checkpoint
                    eval/{base,tuned,merged}/   predictions and scores
                    results.json            the table, for programs
"""

from __future__ import annotations

import dataclasses
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from neuroada_cli import files, hub
from neuroada_cli.commands import eval as eval_command
from neuroada_cli.commands import merge as merge_command
from neuroada_cli.commands import select as select_command
from neuroada_cli.commands import train as train_command
from neuroada_cli.errors import NumericsError, OutputError
from neuroada_cli.evaluation.results import EvalResult
from neuroada_cli.foreign_text import shown
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.show.numbers import share, size
from neuroada_cli.training.fit import TrainResult

TOUR = frozenset({"selection.safetensors", "train", "merged", "eval", "results.json"})  # what it writes
EXAMPLES = 3  # rows shown with what base and tuned model made of them
STEPS = 6


@dataclass(frozen=True)
class Tour:
    """What the tour found. scores: "base", "tuned", "merged" -> task -> score; seconds: step -> seconds."""

    folder: Path
    base: EvalResult
    tuned: EvalResult
    merged: EvalResult
    trained: TrainResult
    seconds: dict[str, float]
    peak_bytes: int

    @property
    def stages(self) -> dict[str, EvalResult]:
        return {"base": self.base, "tuned": self.tuned, "merged": self.merged}


def run(recipe: Recipe, overwrite: bool = False) -> Tour:
    """Take the whole tour in the recipe's run folder, which it holds, and print one table.

    overwrite  replace a former tour, and nothing else
    Raises OutputError when the folder holds something and may not be replaced, or another process holds it,
    NumericsError when the merged model answers differently from the trained one, and whatever the single
    commands raise.
    """
    folder = recipe.run_path
    _check_folder(folder, overwrite)
    with files.Lock(folder):
        _check_folder(folder, overwrite)
        return _tour(recipe, folder)


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError("is a file", str(folder), "name another folder with --out")
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    names = {name for name in names if not name.startswith(".")}
    if others := sorted(names - TOUR):
        shown_names = ", ".join(others[:4]) + (", …" if len(others) > 4 else "")
        raise OutputError(
            f"holds something else than a tour ({shown_names})", str(folder), "name another folder with --out"
        )
    if names and not overwrite:
        raise OutputError("is not empty", str(folder), "add --overwrite, or choose another --out")


def _tour(recipe: Recipe, folder: Path) -> Tour:
    inner = recipe.model_copy(update={"run_dir": str(folder / "train")})
    selection = folder / "selection.safetensors"
    console, seconds = Console(), dict[str, float]()

    with _step(console, seconds, "model", f"getting {shown(recipe.model.path)} ready"):
        model = str(
            hub.resolve_model(recipe.model.path, recipe.model.revision, recipe.model.trust_remote_code)
        )
    with _step(console, seconds, "select", f"choosing K={recipe.select.k} inputs of every neuron"):
        select_command.run(inner, out=selection, overwrite=True, quiet=True)
    with _step(console, seconds, "eval base", "scoring the base model on held-out rows"):
        base = _eval(model, inner, folder / "eval" / "base")
    with _step(console, seconds, "train", "training"):
        trained = train_command.run(inner, selection=selection, overwrite=True)
    with _step(console, seconds, "eval tuned", "scoring the trained adapter"):
        tuned = _eval(str(trained.run_dir), inner, folder / "eval" / "tuned")
    with _step(console, seconds, "merge", "merging it into a plain checkpoint, and scoring that"):
        merge_command.run(trained.run_dir, folder / "merged", overwrite=True, quiet=True)
        merged = _eval(str(folder / "merged"), inner, folder / "eval" / "merged")

    tour = Tour(folder, base, tuned, merged, trained, seconds, _peak_bytes())
    files.write_json(folder / "results.json", summary(tour, recipe))
    _refuse_difference(tour)
    examples = _examples(tour)
    if examples.row_count:
        console.print(examples)
    console.print(_table(tour, recipe))
    return tour


def _eval(target: str, recipe: Recipe, out: Path) -> EvalResult:
    # the tuned and merged models must see the same settings, so all three get the recipe's
    return eval_command.run(target, recipe=recipe, out=out, overwrite=True, quiet=True)


@contextmanager
def _step(console: Console, seconds: dict[str, float], name: str, doing: str) -> Iterator[None]:
    console.print(f"[bold cyan]{len(seconds) + 1}/{STEPS}[/]  {doing}", highlight=False)
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def differing_rows(one: EvalResult, other: EvalResult) -> int:
    """How many rows two evaluations answered differently, over all tasks."""
    return sum(
        a.prediction != b.prediction
        for task, rows in one.predictions.items()
        for a, b in zip(rows, other.predictions[task], strict=True)
    )


def _refuse_difference(tour: Tour) -> None:
    different = differing_rows(tour.tuned, tour.merged)
    if different:
        rows = sum(len(rows) for rows in tour.merged.predictions.values())
        raise NumericsError(
            f"the merged model answers {different} of {rows} rows differently from the trained one",
            str(tour.folder / "merged"),
            "compare eval/tuned and eval/merged, and report it",
        )


def _peak_bytes() -> int:
    """The most memory this process ever held (on a GPU: the most that torch held there)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def summary(tour: Tour, recipe: Recipe) -> dict[str, Any]:
    """The table as plain values; paths are relative to the tour's folder."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "scores": {
            stage: {task: dataclasses.asdict(result) for task, result in found.results.items()}
            for stage, found in tour.stages.items()
        },
        "merged_rows_differing_from_tuned": differing_rows(tour.tuned, tour.merged),
        "trainable": tour.trained.trainable,
        "parameters": tour.trained.total,
        "seconds": tour.seconds,
        "peak_bytes": tour.peak_bytes,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "merged": "merged",
        "adapter": os.path.relpath(tour.trained.best or tour.trained.last or tour.folder, tour.folder),
    }


def _examples(tour: Tour) -> Table:
    """A few held-out rows that base and tuned model answered differently."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="Held-out rows", title_justify="left")
    for heading in ("row", "base", "tuned", "right answer"):
        table.add_column(heading, overflow="fold")
    pairs = [
        (before, after)
        for task, rows in tour.base.predictions.items()
        for before, after in zip(rows, tour.tuned.predictions[task], strict=True)
        if before.extracted != after.extracted
    ]
    for before, after in pairs[:EXAMPLES]:
        line = next(iter(before.prompt.strip().splitlines()), "")[:100]
        cells = (line, before.extracted[:40], after.extracted[:40], after.reference[:40])
        table.add_row(*map(shown, cells))
    return table


def _table(tour: Tour, recipe: Recipe) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for stage, found in tour.stages.items():
        for task, result in found.results.items():
            same = ", every answer as the trained one" if stage == "merged" else ""
            score = f"{100 * result.score:5.1f} {result.metric}"
            table.add_row(f"{stage} model", f"{score} on {result.n} held-out rows of {task}{same}")
    table.add_section()
    trained = tour.trained
    part = share(trained.trainable, trained.total)
    table.add_row("trainable", f"{trained.trainable:,} of {trained.total:,} parameters ({part})")
    training, everything = tour.seconds["train"], sum(tour.seconds.values())
    table.add_row("time", f"{training:.0f} s for training, {everything:.0f} s in all")
    table.add_row("peak memory", size(tour.peak_bytes))
    table.add_section()
    table.add_row("merged model", shown(tour.folder / "merged"))
    table.add_row("adapter", shown(trained.best or trained.last))
    table.add_row("picture", shown(trained.run_dir / "training.png"))
    table.add_row("predictions", shown(tour.folder / "eval"))
    table.add_row("figures", shown(tour.folder / "results.json"))
    return table
