"""`neuroada train`: cheap checks first, then training, and what is left behind."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from neuroada_cli import files
from neuroada_cli.errors import ResourceError
from neuroada_cli.foreign_text import shown
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.training import dry_run as preview
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training import space
from neuroada_cli.training.checkpoint import check_unchanged, newest_opened
from neuroada_cli.training.fit import TrainResult, fit
from neuroada_cli.training.preflight import check


def run(
    recipe: Recipe,
    selection: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    recipe_file: Path | None = None,
) -> TrainResult:
    """Train as the recipe says, into its run folder.

    selection  a selection file, instead of the run folder's own or a new one
    resume     go on from the newest complete checkpoint (from the start when there is none yet)
    overwrite  remove a former run in the folder, once everything else is known to be right
    dry_run    check everything and show what would happen; no weight is read, nothing is written
    recipe_file  where the recipe came from: a run that would remove it is refused
    One process trains: a launcher that starts several of them is refused before anything is written.
    Raises UserErrors before the model loads wherever that is possible; Stopped after a signal.
    """
    _refuse_ranks()
    console = Console(stderr=True, quiet=quiet)
    if selection is not None:
        section = recipe.select.model_copy(update={"file": str(selection)})
        recipe = recipe.model_copy(update={"select": section})
    run_dir = recipe.run_path
    run_folder.check(run_dir, resume, overwrite, recipe_file)
    checked = check(recipe, overwrite)
    plan = checked.plan
    preview.show(recipe, plan, checked.rows, checked.tokenizer, console)
    if dry_run:
        predicted = preview.dry_run(checked)
        return TrainResult(
            run_dir=run_dir,
            steps=plan.steps,
            peak_bytes=predicted.peak if predicted else 0,
            trainable=plan.trainable,
            total=plan.total,
        )
    space.require(checked)
    with files.Lock(run_dir):
        run_folder.check(run_dir, resume, overwrite, recipe_file)
        source = newest_opened(run_dir) if resume else None
        if resume:
            files.clean_stale(run_dir)  # what a killed run left half written; a fresh start clears it anyway
        if source is not None:
            check_unchanged(source.folder, checked.recipe.model_dump(mode="json"), checked.rows.hashes)
        elif resume:
            console.print("no checkpoint yet: training starts at the beginning")
        result = fit(checked, source, console)
    _show(result, console)
    return result


def _refuse_ranks() -> None:
    """torchrun and its like start one process per GPU, which would all write into one run folder."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    if ranks not in ("", "0", "1"):
        raise ResourceError(
            f"was started as one of {ranks[:16]} processes, but trains in one",
            "WORLD_SIZE",
            "start it without torchrun or accelerate",
        )


def _show(result: TrainResult, console: Console) -> None:
    minutes, seconds = divmod(round(result.seconds), 60)
    best = f"; best: {result.best.name} ({result.best_value:.4f})" if result.best else ""
    console.print(
        f"{result.steps} steps in {minutes}:{seconds:02d}, {result.peak_bytes / 1e9:.2f} GB{best}; "
        f"everything is in {shown(result.run_dir)}",
        highlight=False,
        soft_wrap=True,
    )
