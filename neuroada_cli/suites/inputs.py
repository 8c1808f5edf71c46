"""The files that a cell is made of, so that one made of others is not taken for it.

A recipe names them, and its hash is of the names.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from neuroada_cli.data.sources import file_here
from neuroada_cli.errors import UserError
from neuroada_cli.hub.fingerprint import fingerprint
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.tasks.registry import get_task, scored_tasks


def inputs(recipe: Recipe) -> dict[str, str]:
    """Name in the recipe -> hash of the model folder, and of each file of rows, that lies on this machine."""
    found = {}
    folder = Path(recipe.model.path).expanduser()
    if folder.is_dir() and (content := _model(folder, _stamp(folder))) is not None:
        found[recipe.model.path] = content
    for source, split in _sources(recipe):
        file = file_here(source, split, recipe.data.data_dir)
        if file is not None:
            about = file.stat()
            found[source] = _file(file, about.st_size, about.st_mtime_ns)
    return found


def changed(earlier: dict[str, str], now: dict[str, str]) -> str | None:
    """The first name that means something else now, where both know it."""
    return next((name for name in earlier if now.get(name, earlier[name]) != earlier[name]), None)


def _sources(recipe: Recipe) -> Iterator[tuple[str, str]]:
    data, task = recipe.data, get_task(recipe.data.task)
    given = [(data.train or task.sets.get("train"), "train"), (data.validation, "validation")]
    given += [(name, "train") for name in data.also]
    given.append((recipe.eval.forgetting, "test"))
    given += [(each.sets.get("test"), "test") for each in scored_tasks(recipe.eval.tasks, data.task)]
    yield from ((source, split) for source, split in given if source is not None)


@functools.cache
def _file(file: Path, size: int, changed_at: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    about = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    return tuple((name, each.st_size, each.st_mtime_ns) for name, each in about)


@functools.cache
def _model(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> str | None:
    try:
        found = fingerprint(folder)
    except UserError:  # whoever loads it tells that
        return None
    return f"{found['layout']} {found['content']}"
