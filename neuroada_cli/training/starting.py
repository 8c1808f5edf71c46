"""A run that begins with what an adapter has learnt."""

from __future__ import annotations

from pathlib import Path

from neuroada_cli import hub
from neuroada_cli.adapter.config import method_of
from neuroada_cli.adapter.find import open_found
from neuroada_cli.adapter.folder import AdapterFolder, read_adapter
from neuroada_cli.delta.targets import shapes_of, targets_of
from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.file import Selection, check_base, check_shapes


def started_from(recipe: Recipe, base: hub.Base) -> tuple[AdapterFolder, Selection] | None:
    """(the folder of `train.start_from`, the connections that it trained); None without one.

    Raises RecipeError for settings that do not go with it, ModelError for a folder that is none, or of
    another base, kind of model or method.
    """
    place = recipe.train.start_from
    if place is None:
        return None
    if recipe.select.file is not None:
        raise RecipeError(
            "train.start_from brings its connections along", "select.file", "leave one of the two out"
        )
    source = open_found(Path(place).expanduser())
    run = recipe.run_path.resolve()
    if source.folder.resolve().is_relative_to(run):
        raise RecipeError(
            "is the run's own folder", f"train.start_from={place}", "add --resume, or name another --out"
        )
    adapter = read_adapter(source)
    method = method_of(adapter.settings)
    if method != recipe.train.method:
        raise ModelError(
            f"was trained by {method}, not {recipe.train.method}", place, f"set train.method: {method}"
        )
    if adapter.task != base.task:
        raise ModelError(f"was trained for {adapter.task}, not for {base.task}", place, "choose its task")
    check_base(adapter.selection.fingerprint, base)
    check_shapes(adapter.selection, shapes_of(targets_of(base.graph)), place)
    return source, adapter.selection
