"""`neuroada train`: cheap checks first, then training, and what is left behind."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from neuroada_cli import files
from neuroada_cli.errors import RecipeError
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.ranks.place import refuse_strangers
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.show.notes import tell
from neuroada_cli.training import dry_run as preview
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training import forecast, outcome, space
from neuroada_cli.training.fit import TrainResult, fit
from neuroada_cli.training.parallel import decide
from neuroada_cli.training.preflight import check
from neuroada_cli.training.resuming import see, where_to_go_on


def run(
    recipe: Recipe,
    selection: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    show_rows: int = 0,
    quiet: bool = False,
    recipe_file: Path | None = None,
    ranks: Ranks = ALONE,
    processes: int | None = None,
    as_json: bool = False,
    full: bool = False,
    origins: Mapping[str, str] | None = None,
    extend: bool = False,
) -> TrainResult:
    """Train as the recipe says, into its run folder.

    selection  a selection file, instead of the run folder's own or a new one
    resume     go on from the newest complete checkpoint (from the start when there is none yet)
    overwrite  remove a former run in the folder, once everything else is known to be right
    dry_run    check everything and show what would happen; no weight is read, nothing is written
    show_rows  show so many rows as they will be learnt, and end there
    recipe_file  where the recipe came from: a run that would remove it is refused
    ranks      the processes that train together: rank 0 locks, writes and speaks
    extend     with `resume`: go on to another train.max_steps or train.epochs, whatever the schedule
    processes  how many of them a dry run is about, which is one process itself
    quiet      say only what is not as it should be
    as_json    for programs: steps, evaluations and the end as JSON objects, a line each, on standard output
    full       a dry run shows every key of the recipe, not only what differs from the defaults
    origins    key -> where the recipe's value comes from, for a dry run to show
    Raises UserErrors before the model loads wherever that is possible; Stopped after a signal.
    """
    refuse_strangers(ranks.alone, "trains")
    console = Console(stderr=True, quiet=quiet or as_json or not ranks.first)
    if selection is not None:
        section = recipe.select.model_copy(update={"file": str(selection)})
        recipe = recipe.model_copy(update={"select": section})
    if extend and not resume:
        raise RecipeError("goes on with a run", "--extend", "add --resume")
    run_dir, stream = recipe.run_path, sys.stdout if as_json else None
    looks = dry_run or show_rows > 0
    if looks and as_json:
        shown = "--dry-run" if dry_run else "--preview"
        raise RecipeError(f"tells the steps of a training, and {shown} takes none", "--json", "leave it out")
    if not looks:
        ranks.first_does(lambda: run_folder.check(run_dir, resume, overwrite, recipe_file))
    if resume:
        recipe = run_folder.as_begun(recipe, run_dir)
    size = processes or ranks.size
    checked = ranks.all_do(lambda: check(recipe, overwrite, ranks, size, console, outline=looks))
    if not ranks.alone:
        ranks.refuse_differences(
            {
                "recipe": checked.recipe.model_dump(mode="json"),
                "set of rows": checked.rows.hashes,
                "base model": checked.base.fingerprint,
            }
        )
    plan = checked.plan
    ranks, why = decide(checked, ranks)
    preview.show(checked, console, ranks, why, rows_follow=show_rows > 0)
    if show_rows and ranks.first:
        preview.show_rows(checked, show_rows, Console())
    if looks:
        told = dry_run and ranks.first
        predicted = forecast.dry_run(checked, processes or ranks.size, origins, full) if told else None
        if dry_run and (problem := run_folder.problem(run_dir, resume, overwrite, recipe_file)):
            tell([f"training would be refused: {problem}"], quiet=False)  # which is what went wrong
        return TrainResult(
            run_dir=run_dir,
            steps=plan.steps,
            peak_bytes=predicted.peak if predicted else 0,
            trainable=plan.trainable,
            total=plan.total,
        )
    ranks.first_does(lambda: space.require(checked))
    with contextlib.ExitStack() as held:
        ranks.first_does(lambda: held.enter_context(files.Lock(run_dir)))
        ranks.all_do(lambda: see(run_dir, ranks))
        ranks.first_does(lambda: run_folder.check(run_dir, resume, overwrite, recipe_file))
        source = where_to_go_on(checked, run_dir, resume, console, ranks, extend)
        result = fit(checked, source, console, ranks, stream)
    if ranks.first:
        outcome.tell(result, console, stream)
    return result
