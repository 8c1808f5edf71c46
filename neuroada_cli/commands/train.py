"""`neuroada train`: cheap checks first, then training, and what is left behind."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from neuroada_cli import files
from neuroada_cli.adapter.folder import AdapterFolder, open_adapter
from neuroada_cli.errors import RecipeError, ResourceError
from neuroada_cli.files.lock import LOCK
from neuroada_cli.foreign_text import shown
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.ranks.place import refuse_strangers
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.show.notes import tell
from neuroada_cli.training import dry_run as preview
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training import forecast, outcome, space
from neuroada_cli.training.checkpoint import check_unchanged, newest_opened
from neuroada_cli.training.fit import TrainResult, fit
from neuroada_cli.training.parallel import decide
from neuroada_cli.training.preflight import Checked, check


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
    if not (dry_run or show_rows):
        ranks.first_does(lambda: run_folder.check(run_dir, resume, overwrite, recipe_file))
    if resume:
        recipe = run_folder.as_begun(recipe, run_dir)
    checked = ranks.all_do(lambda: check(recipe, overwrite, ranks, processes or ranks.size))
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
    preview.show(checked, console, ranks, why)
    if show_rows and ranks.first:
        preview.show_rows(checked, show_rows, Console())
    if dry_run or show_rows:
        told = dry_run and ranks.first
        predicted = forecast.dry_run(checked, processes or ranks.size, origins, full) if told else None
        if dry_run and (problem := run_folder.problem(run_dir, resume, overwrite, recipe_file)):
            tell([f"training would be refused: {problem}"], console.quiet)
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
        ranks.all_do(lambda: _see(run_dir, ranks))
        ranks.first_does(lambda: run_folder.check(run_dir, resume, overwrite, recipe_file))
        source = _source(checked, run_dir, resume, console, ranks, extend)
        result = fit(checked, source, console, ranks, stream)
    if ranks.first:
        outcome.tell(result, console, stream)
    return result


def _source(
    checked: Checked, run_dir: Path, resume: bool, console: Console, ranks: Ranks, extend: bool
) -> AdapterFolder | None:
    """The checkpoint to go on from: found by rank 0, opened by all. Raises ModelError, OutputError."""
    if not resume:
        return None

    def find() -> AdapterFolder | None:
        found = newest_opened(
            run_dir,
            lambda name, why: console.print(
                f"{shown(name)} is passed over: {shown(why)}", style="yellow", soft_wrap=True, highlight=False
            ),
        )
        files.clean_stale(run_dir)  # what a killed run left half written; a fresh start clears it anyway
        if found is not None:
            recipe, steps = checked.recipe.model_dump(mode="json"), checked.plan.steps
            if check_unchanged(found.folder, recipe, checked.rows.hashes, steps, extend):
                console.print(f"the run goes on to step {steps}", highlight=False)
                files.write_text(run_dir / run_folder.RECIPE, to_yaml(checked.recipe))
        return found

    found = ranks.first_does(find)
    name = ranks.shared(None if found is None else found.folder.name)
    if name is None:
        console.print("no checkpoint yet: training starts at the beginning")
        return None
    return ranks.all_do(lambda: found or open_adapter(run_dir / name))


def _see(run_dir: Path, ranks: Ranks) -> None:
    """Raises ResourceError where a process does not see the run folder that rank 0 holds."""
    if not (run_dir / LOCK).exists():
        raise ResourceError(
            f"process {ranks.number} on {socket.gethostname()} does not see what process 0 wrote there",
            str(run_dir),
            "name a folder that all machines share with --out",
        )
