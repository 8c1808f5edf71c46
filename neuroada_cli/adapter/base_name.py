"""How an adapter names its base: as a hub id, or by a way from where it was trained; never by a path that is
one machine's alone.
"""

from __future__ import annotations

import os
from pathlib import Path

HERE = "./"  # begins every name that is a way and no hub id


def told(path: str, revision: str | None = None) -> tuple[str, str | None]:
    """(the name of a base that lies at `path`, its revision) for an adapter's config.

    A folder in the hub's cache (`models--owner--name/snapshots/<revision>`) is told by its id, any other one
    by the way to it from the working directory, as PEFT takes it. What is no folder is an id already.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path, revision
    from huggingface_hub import constants

    real = folder.resolve()
    repository = real.parent.parent
    cached = repository.parent == Path(constants.HF_HUB_CACHE).resolve()  # where an id is looked for again
    if cached and real.parent.name == "snapshots" and repository.name.startswith("models--"):
        return repository.name.removeprefix("models--").replace("--", "/"), real.name
    try:
        way = os.path.relpath(real, Path.cwd().resolve())
    except ValueError:  # another drive
        return HERE + real.name, revision
    return HERE + Path(way).as_posix(), revision


def found(name: str, adapter: Path) -> str:
    """Where the base lies that the adapter in a folder names: the way is tried from the working directory,
    then from the folders that the adapter lies in, the nearest first. As it is named where there is none.
    """
    if not name.startswith(HERE):
        return name
    for start in (Path.cwd(), *adapter.resolve().parents):
        if (start / name / "config.json").is_file():
            return os.path.normpath(start / name)
    return name
