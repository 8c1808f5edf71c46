"""`neuroada validate`: everything about a recipe that can be known without the network and without training.

The schema was checked when the recipe was read. Here its names (tasks, criterion) are looked up; a model
that lies on this machine is checked down to the layers that the targets match, and K against their inputs.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from neuroada_cli import hub
from neuroada_cli.errors import RecipeError
from neuroada_cli.foreign_text import printable, public
from neuroada_cli.hub.packaged import PACKAGED
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.choice import check_criterion, choice_of
from neuroada_cli.selection.file import read_selection
from neuroada_cli.show.numbers import share
from neuroada_cli.tasks.registry import get_protocol, get_task, scored_tasks
from neuroada_cli.tasks.task import Task
from neuroada_cli.training import dry_run
from neuroada_cli.training.preflight import check


def run(recipe: Recipe, show_rows: int = 0) -> None:
    """Print in four lines what the recipe would do, and so many rows as they will be learnt.

    Raises the UserError of whatever is wrong with it.
    """
    task = get_task(recipe.data.task)
    protocol = get_protocol(recipe.data.protocol)
    scored = scored_tasks(recipe.eval.tasks, recipe.data.task)
    check_criterion(recipe.select.criterion)
    source = recipe.data.train or task.sets.get("train")
    if source is None:
        raise RecipeError(f"task {task.name} has no training set of its own", "data.train", "name one")
    model = _model(recipe, task)
    train = recipe.train
    for line in (
        f"{recipe.name}: fine",
        f"  model  {recipe.model.path} ({recipe.model.dtype or 'in its own data type'}), {model}",
        f"  data   {source} as {task.name}, protocol {protocol.name} (loss on {protocol.loss_mask})",
        f"  train  {train.method}, lr {recipe.optim.lr:g} ({recipe.optim.schedule}), "
        f"{train.batch_size} rows a step, {train.epochs:g} epochs, into {recipe.run_path}",
        f"  eval   {', '.join(each.name for each in scored)}",
    ):
        print(printable(public(line)))
    if show_rows:
        dry_run.show_rows(check(recipe, overwrite=False), show_rows, Console())


def _model(recipe: Recipe, task: Task) -> str:
    select = recipe.select
    if select.file is not None:
        selection = read_selection(Path(select.file))
        return (
            f"K={selection.k} by {selection.criterion} in {len(selection.indices)} layers, from {select.file}"
        )
    if recipe.model.path not in PACKAGED and not Path(recipe.model.path).expanduser().exists():
        return f"K={select.k} by {select.criterion}; not on this machine, so not looked into"
    folder = hub.resolve_model(recipe.model.path, recipe.model.revision, recipe.model.trust_remote_code)
    base = hub.open_base(folder, task.work, task.num_labels, recipe.model.trust_remote_code)
    choice = choice_of(select, base, recipe.seed)
    choice.check()
    count, total = choice.connections, base.parameters
    trains = f"{count:,} of {total:,} parameters train ({share(count, total)})"
    return f"K={select.k} by {choice.label} in {len(choice.targets)} layers: {trains}"
