"""`neuroada select`: choose the K connections of every neuron that may train, and store them.

Only the base's files are read, one tensor at a time; the model is loaded only for a criterion that looks at
training rows.
O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from neuroada_cli import files, hub
from neuroada_cli.errors import ModelError, OutputError, RecipeError
from neuroada_cli.foreign_text import shown
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection import overlap, shares
from neuroada_cli.selection.choice import Choice, check_criterion, choice_of
from neuroada_cli.selection.file import Selection, check_base, read_selection, write_selection
from neuroada_cli.selection.from_files import LayerChoice
from neuroada_cli.selection.overlap import Overlap
from neuroada_cli.show.figures import check_name, drawn
from neuroada_cli.show.notes import say, tell
from neuroada_cli.show.numbers import share, size
from neuroada_cli.tasks.registry import recipe_task
from neuroada_cli.training import choose


def run(
    recipe: Recipe,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    plot: Path | None = None,
) -> Path:
    """Write the selection of a recipe to `out` (default: selection.safetensors in the run folder).

    plot  picture of how neurons share the inputs, by its ending PNG, SVG or PDF
    Raises RecipeError (K too large, a target that matches nothing), ModelError, OutputError (out exists,
    or another process works on it).
    """
    if recipe.select.file is not None:
        raise RecipeError(
            f"select.file={recipe.select.file} names a finished selection", fix="remove it to choose anew"
        )
    out = Path(out) if out is not None else recipe.run_path / "selection.safetensors"
    if out.exists() and not overwrite:
        raise OutputError("exists", str(out), "name another file with --out, or give --overwrite")
    check_name(plot, "--plot")
    started = time.perf_counter()
    base, choice = _base(recipe)
    tell(hub.ignored_of_model(base.folder, recipe.model.trust_remote_code, base.graph), quiet)
    # a training in the same run folder reads its selection there
    with files.Lock(recipe.run_path) if _lies_in(out, recipe.run_path) else files.Lock.on(out):
        files.clean_stale(out.parent, out.name)
        selection, choices = _choose(recipe, base, choice, quiet)
        write_selection(out, selection)
    if plot is not None:
        inputs = {name: columns for name, (_, columns) in choice.shapes.items()}
        drawn(lambda: shares.draw(selection, inputs, plot), plot, asked_for=True)
    if not quiet:
        _show(choices, recipe.select.criterion, base.parameters, out, time.perf_counter() - started)
        _tell_picture(plot)
    return out


def _tell_picture(plot: Path | None) -> None:
    if plot is not None:
        say(Console(), f"picture in {shown(plot)}")


def _lies_in(out: Path, folder: Path) -> bool:
    return Path(os.path.realpath(out)).parent == Path(os.path.realpath(folder))


def compare(
    recipe: Recipe,
    names: Sequence[str],
    plot: Path | None = None,
    per_layer: bool = False,
    quiet: bool = False,
) -> dict[str, list[Overlap]]:
    """How much the first of `names` has in common with each of the others; nothing is stored.

    names      criteria, or selection files of the same base
    plot       picture to write, by its ending PNG, SVG or PDF
    per_layer  a row for every layer, not for every kind of layer
    Raises RecipeError for fewer than two names, or a name that is neither; ModelError for another base.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise RecipeError("takes two or more different names", "--compare", "like magnitude,gradient")
    check_name(plot, "--plot")
    base, choice = _base(recipe)
    for name in names:
        if not Path(name).is_file():
            check_criterion(name)
    selections = {name: _named(name, recipe, base, choice, quiet) for name in names}
    first = names[0]
    inputs = {name: columns for name, (_, columns) in choice.shapes.items()}
    for name, selection in selections.items():
        if selection.indices.keys() != choice.targets.keys():
            raise ModelError("holds other layers than the recipe's targets", name)
    found = {name: overlap.overlaps(selections[first], selections[name], inputs, name) for name in names[1:]}
    if not quiet:
        Console().print(overlap.table(first, found, per_layer))
    if plot is not None:
        drawn(lambda: overlap.draw(first, found, plot), plot, asked_for=True)
        if not quiet:
            _tell_picture(plot)
    return found


def _base(recipe: Recipe) -> tuple[hub.Base, Choice]:
    """The recipe's model as far as choosing needs it, and what it chooses there; no weight is read."""
    task, model = recipe_task(recipe.data), recipe.model
    folder = hub.resolve_model(model.path, model.revision, model.trust_remote_code)
    base = hub.open_base(folder, task.work, task.num_labels, model.trust_remote_code)
    choice = choice_of(recipe.select, base, recipe.seed)
    choice.check()
    return base, choice


def _named(name: str, recipe: Recipe, base: hub.Base, choice: Choice, quiet: bool) -> Selection:
    """A selection file, or what a criterion chooses."""
    if Path(name).is_file():
        selection = read_selection(Path(name))
        check_base(selection.fingerprint, base)
        return selection
    return _choose(recipe, base, dataclasses.replace(choice, criterion=name), quiet)[0]


def _choose(
    recipe: Recipe, base: hub.Base, choice: Choice, quiet: bool
) -> tuple[Selection, list[LayerChoice]]:
    choices: list[LayerChoice] = []
    console = Console(stderr=True)
    what = f"selecting by {choice.criterion}"
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        step = bar.add_task(what, total=len(choice.targets))

        def on_layer(found: LayerChoice) -> None:
            choices.append(found)
            bar.advance(step)

        return choose.select(recipe, base, choice, on_layer), choices


def _show(choices: Sequence[LayerChoice], criterion: str, total: int, out: Path, seconds: float) -> None:
    """One row per kind of layer; few inputs used means that many neurons chose the same ones."""
    alike = all(choice.chosen == choice.outputs * choices[0].k for choice in choices)
    title = f"K={choices[0].k} per neuron, by {criterion}" if alike else f"by {criterion}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for heading in ("count", "O x I", "chosen", "share", "min |w|", "mean |w|", "inputs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in group_choices(choices):
        first = group[0]
        chosen = sum(c.chosen for c in group)
        used = sum(c.columns for c in group) / sum(c.inputs for c in group)
        table.add_row(
            first.module.rpartition(".")[2],
            str(len(group)),
            f"{first.outputs} x {first.inputs}",
            f"{chosen:,}",
            share(chosen, sum(c.outputs * c.inputs for c in group)),
            f"{min(c.smallest for c in group):.3g}",
            f"{sum(c.mean for c in group) / len(group):.3g}",
            f"{100 * used:.1f} %",
        )
    chosen = sum(c.chosen for c in choices)
    read = size(sum(c.nbytes for c in choices))
    console = Console()
    console.print(table)
    say(console, "inputs: how many of a layer's inputs at least one neuron chose", style="dim")
    say(console, f"{chosen:,} of {total:,} parameters train ({share(chosen, total)})")
    say(console, f"read {read} in {seconds:.1f} s; selection in {shown(out)}")


def group_choices(choices: Sequence[LayerChoice]) -> list[list[LayerChoice]]:
    """Layers of one kind together: the same last name and the same shape, in the order of first sight."""
    groups: dict[tuple[str, int, int], list[LayerChoice]] = {}
    for choice in choices:
        key = (choice.module.rpartition(".")[2], choice.outputs, choice.inputs)
        groups.setdefault(key, []).append(choice)
    return list(groups.values())
