"""A run's folder: what in it belongs to a run, when it may be written to, and how it is emptied."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from neuroada_cli import files
from neuroada_cli.adapter.find import checkpoints
from neuroada_cli.errors import ModelError, OutputError, RecipeError
from neuroada_cli.files.folders import LINKS
from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.training.trackers import FOLDERS

RECIPE, SELECTION, METRICS = "recipe.yaml", "selection.safetensors", "metrics.jsonl"
ENVIRONMENT, PICTURE, REPORT = "env.json", "training.png", "report.html"
# The last two say whose folder it is. They are written first and removed last, so that a run that was killed
# while it began, or while it was cleared away, is still known for one.
OURS = (*LINKS, METRICS, PICTURE, REPORT, SELECTION, RECIPE, ENVIRONMENT)
FACTS = {"neuroada", "python", "system"}  # some of what `environment.facts` tells of every machine


def check(folder: Path, resume: bool, overwrite: bool, recipe_file: Path | None = None) -> None:
    """Whether a run may write here; changes nothing. A selection made beforehand is welcome.

    recipe_file  the file that the recipe was read from, which must not be lost
    Raises OutputError for a folder that holds something else, also with `resume` and `overwrite`: what is no
    run can be neither gone on with nor replaced.
    """
    if resume and overwrite:
        raise OutputError("--resume and --overwrite exclude each other", fix="give one of them")
    if folder.exists() and not folder.is_dir():
        raise OutputError("is a file", str(folder), "name another folder with --out")
    if not folder.is_dir():
        return
    if not holds_run(folder):
        _refuse_others(folder, "it holds no run, so name another folder with --out")
    elif not (resume or overwrite):
        _refuse_others(folder, "--resume goes on, --overwrite starts again, --out names another folder")
    elif overwrite or not any(checkpoints(folder)):
        _refuse_to_lose(recipe_file, folder / RECIPE)


def problem(folder: Path, resume: bool, overwrite: bool, recipe_file: Path | None = None) -> str | None:
    """What `check` would refuse, as a line; None for nothing."""
    try:
        check(folder, resume, overwrite, recipe_file)
    except OutputError as error:
        return error.line()
    return None


def _refuse_others(folder: Path, fix: str) -> None:
    others = sorted(entry.name for entry in folder.iterdir() if not _is_welcome(entry))
    if others:
        shown = ", ".join(others[:4]) + (", …" if len(others) > 4 else "")
        raise OutputError(f"is not empty ({shown})", str(folder), fix)


def _is_welcome(entry: Path) -> bool:
    """What is there before a run: a selection, hidden files, and all that a start killed at once leaves."""
    return entry.name.startswith(".") or entry.name == SELECTION or _is_environment(entry)


def _refuse_to_lose(recipe_file: Path | None, ours: Path) -> None:
    there = recipe_file is not None and recipe_file.exists() and ours.exists()
    if recipe_file is not None and there and os.path.samefile(recipe_file, ours):
        raise OutputError(
            "belongs to the run that would be removed", str(recipe_file), "name a copy of it elsewhere"
        )


def holds_run(folder: Path) -> bool:
    """A checkpoint of ours, or a recipe beside the facts that every run begins with: a recipe alone is
    anybody's.
    """
    if any((checkpoint / files.MANIFEST).is_file() for _, checkpoint in checkpoints(folder)):
        return True
    return (folder / RECIPE).is_file() and _is_environment(folder / ENVIRONMENT)


def _is_environment(file: Path) -> bool:
    if file.name != ENVIRONMENT or not file.is_file():
        return False
    try:
        facts = files.read_json(file)
    except ModelError:
        return False
    return isinstance(facts, dict) and facts.keys() >= FACTS


def as_begun(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe that goes on in a run's folder, with what the run was told from outside as it began: the day.

    Whether it is the run's own recipe otherwise is checked with the checkpoint.
    """
    try:
        begun = load_recipe(folder / RECIPE)
    except RecipeError:
        return recipe
    data = recipe.data
    if data.date is not None or begun.data.date is None:
        return recipe
    return recipe.model_copy(update={"data": data.model_copy(update={"date": begun.data.date})})


def clear(folder: Path) -> None:
    """Remove a former run and nothing else. Call it while holding the folder's Lock.

    A kill in between leaves no checkpoint by halves, and what can be cleared again. Raises ResourceError.
    """
    files.clean_stale(folder)
    if not holds_run(folder):
        return  # perhaps a selection made for the run that starts now
    with files.explained(folder):
        for name in LINKS:  # before what they point to, so that nothing takes the rest for a run to merge
            _unlink(folder / name)
        for _, checkpoint in list(checkpoints(folder)):
            files.remove_folder(checkpoint)
        for name in FOLDERS:
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                files.remove_folder(folder / name)
        for name in OURS:
            _unlink(folder / name)


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
