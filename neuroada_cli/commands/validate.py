"""`neuroada validate`: what `train` checks before it reads a weight, by the same code, and what it would do.

A model that is not on this machine is not fetched for it: then names, settings and files of rows are checked,
and that the rest was not is said.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from neuroada_cli import hub
from neuroada_cli.errors import RecipeError
from neuroada_cli.foreign_text import public, shown
from neuroada_cli.hub.packaged import PACKAGED
from neuroada_cli.methods import facts_of
from neuroada_cli.recipe.schema import Recipe, TrainSection
from neuroada_cli.selection.choice import check_criterion
from neuroada_cli.selection.file import read_selection
from neuroada_cli.show.notes import say, tell
from neuroada_cli.show.numbers import counted
from neuroada_cli.tasks.loss_mask import loss_mask_of
from neuroada_cli.tasks.registry import get_protocol, recipe_task, scored_tasks
from neuroada_cli.tasks.task import Task
from neuroada_cli.tasks.training_set import training_set
from neuroada_cli.training import dry_run, space
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training.preflight import Checked, check
from neuroada_cli.training.remarks import remarks

UNSEEN = "not on this machine, so not looked into (train --dry-run asks the hub for its headers)"


def run(recipe: Recipe, show_rows: int = 0) -> None:
    """Print in a few lines what the recipe would do, and so many rows as they will be learnt.

    Raises the UserError of whatever would keep `train` from starting, but for a run folder that is taken,
    which is told.
    """
    task = recipe_task(recipe.data)
    protocol = get_protocol(recipe.data.protocol)
    mask = loss_mask_of(recipe.data, task, protocol)
    scored = scored_tasks(recipe.eval.tasks, recipe.data.task)
    check_criterion(recipe.select.criterion)
    source = recipe.data.train or task.sets.get("train")
    if source is None:
        raise RecipeError(f"task {task.name} has no training set of its own", "data.train", "name one")
    checked = None
    if _is_elsewhere(recipe):
        model = _unseen(recipe, task)
    else:
        checked = check(recipe, overwrite=False, console=Console(stderr=True))
        space.require(checked)
        model = _seen(checked)
    train = recipe.train
    fine = "fine" if checked is not None else "fine as far as it can be told without the model"
    for line in (
        f"{recipe.name}: {fine}",
        f"  model  {recipe.model.path} ({recipe.model.dtype or 'in its own data type'}), {model}",
        f"  data   {source} as {task.name}, protocol {protocol.name} (loss on {mask})",
        f"  train  {train.method}, lr {recipe.optim.lr:g} ({recipe.optim.schedule}), "
        f"{counted(train.batch_size, 'row')} a step, {_length(train)}, into {recipe.run_path}",
        f"  eval   {', '.join(each.name for each in scored)}",
    ):
        say(Console(), shown(public(line)))
    if problem := run_folder.problem(recipe.run_path, resume=False, overwrite=False):
        tell([f"training would be refused: {problem}"])
    if checked is not None:
        tell(remarks(checked))
    if show_rows:
        dry_run.show_rows(checked or check(recipe, overwrite=False), show_rows, Console())


def _length(train: TrainSection) -> str:
    return (
        f"{train.epochs:g} {'epoch' if train.epochs == 1 else 'epochs'}"
        if train.max_steps is None
        else counted(train.max_steps, "step")
    )


def _is_elsewhere(recipe: Recipe) -> bool:
    """Whether the model would have to be fetched from the hub. A path that leads nowhere would not."""
    path = recipe.model.path
    if path in PACKAGED or Path(path).expanduser().exists():
        return False
    named = hub.is_hub_id(path) or "/" not in path
    return named and hub.local_folder(path, recipe.model.revision) is None


def _unseen(recipe: Recipe, task: Task) -> str:
    """What can be said without the model, once what can be checked is checked."""
    select, data = recipe.select, recipe.data
    facts_of(recipe.train.method).require()
    if data.data_dir is not None or (data.train is not None and Path(data.train).suffix != ""):
        training_set(data, task, recipe.seed, scored_tasks(recipe.eval.tasks, data.task))
    if select.file is not None:
        selection = read_selection(Path(select.file))
        chosen = f"K={selection.k} by {selection.criterion} in {len(selection.indices)} layers"
        return f"{chosen}, from {select.file}; {UNSEEN}"
    return f"K={select.k} by {select.criterion}; {UNSEEN}"


def _seen(checked: Checked) -> str:
    plan, choice, select = checked.plan, checked.choice, checked.recipe.select
    trains = plan.trains()
    if not plan.facts.chosen:
        return trains
    where = f", from {select.file}" if select.file is not None else ""
    label = select.criterion if select.file is not None else choice.label
    return f"K={select.k} by {label} in {len(choice.targets)} layers{where}: {trains}"
