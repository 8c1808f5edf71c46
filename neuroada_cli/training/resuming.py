"""From where a run goes on: the newest checkpoint that is what was saved, of the same run or a longer one."""

from __future__ import annotations

import socket
from pathlib import Path

from rich.console import Console

from neuroada_cli import files
from neuroada_cli.adapter.folder import AdapterFolder, open_adapter
from neuroada_cli.errors import OutputError, ResourceError
from neuroada_cli.files.lock import LOCK
from neuroada_cli.foreign_text import shown
from neuroada_cli.ranks.group import Ranks
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.show.notes import say
from neuroada_cli.show.numbers import counted
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training.checkpoint import check_unchanged, newest_opened
from neuroada_cli.training.preflight import Checked
from neuroada_cli.training.saved_state import read_state


def where_to_go_on(
    checked: Checked, run_dir: Path, resume: bool, console: Console, ranks: Ranks, extend: bool
) -> AdapterFolder | None:
    """The checkpoint to go on from: found by rank 0, opened by all. Raises ModelError, OutputError."""
    if not resume:
        return None

    def find() -> AdapterFolder | None:
        found = newest_opened(
            run_dir,
            lambda name, why: say(console, f"{shown(name)} is passed over: {shown(why)}", style="yellow"),
        )
        files.clean_stale(run_dir)  # what a killed run left half written; a fresh start clears it anyway
        if found is not None:
            recipe, steps = checked.recipe.model_dump(mode="json"), checked.plan.steps
            longer = check_unchanged(found.folder, recipe, checked.rows.hashes, steps, extend)
            if (stopped := _stopped_early(checked, found)) is not None and longer:
                raise OutputError(
                    f"{stopped}: another length changes nothing",
                    str(found.folder),
                    "start again with --overwrite",
                )
            if stopped is not None:
                say(console, f"{stopped}: nothing is left to train", style="yellow")
            if longer:
                console.print(f"the run goes on to step {steps}", highlight=False)
                files.write_text(run_dir / run_folder.RECIPE, to_yaml(checked.recipe))
        return found

    found = ranks.first_does(find)
    name = ranks.shared(None if found is None else found.folder.name)
    if name is None:
        console.print("no checkpoint yet: training starts at the beginning")
        return None
    return ranks.all_do(lambda: found or open_adapter(run_dir / name))


def _stopped_early(checked: Checked, found: AdapterFolder) -> str | None:
    """That a run has ended before its last step, since its evaluations became no better."""
    progress, early_stop = read_state(found.folder).progress, checked.recipe.train.early_stop
    if not progress.hopeless(early_stop) or progress.step >= checked.plan.steps:
        return None
    since = counted(progress.stale, "evaluation")
    return (
        f"the run was stopped early after step {progress.step}, since {since} brought nothing better "
        f"(train.early_stop={early_stop})"
    )


def see(run_dir: Path, ranks: Ranks) -> None:
    """Raises ResourceError where a process does not see the run folder that rank 0 holds."""
    if not (run_dir / LOCK).exists():
        raise ResourceError(
            f"process {ranks.number} on {socket.gethostname()} does not see what process 0 wrote there",
            str(run_dir),
            "name a folder that all machines share with --out",
        )
