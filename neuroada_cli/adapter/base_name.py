"""How an adapter names its base: as a hub id, or by a way from where it was trained; never by a path that is
one machine's alone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from neuroada_cli.errors import ModelError
from neuroada_cli.files import claims, strict_json
from neuroada_cli.files.folders import ADAPTER_CONFIG, CONFIG, LINKS
from neuroada_cli.machine.network import hub_answers

HERE = "./"  # begins every name that is a way and no hub id
MOVED = "if the base has moved, name it with --base"


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
        if os.path.isfile(start / name / CONFIG):
            return os.path.normpath(start / name)
    return name


def look(folder: Path) -> None:
    """Raises ModelError where the base of an adapter, or of a run's best one, is not to be had, or has a
    config that cannot be that of its files. Whatever else is wrong is left to those who read it.

    Here, since torch is not there yet: the answer comes at once.
    """
    for adapter in (folder, *(folder / link for link in LINKS)):
        name = _named(adapter / ADAPTER_CONFIG)
        if name is None:
            continue
        base = found(name, adapter)
        if os.path.isdir(os.path.expanduser(base)):
            claims.look(Path(base).expanduser())
        elif name.startswith((HERE, "/", "~")):
            raise ModelError("the adapter's base: no such model folder", base, f"check the path; {MOVED}")
        elif name.count("/") == 1 and (why := _out_of_reach(name)) is not None:
            what = f"the adapter's base: is neither a folder here nor in the cache, and {why}"
            raise ModelError(what, name, f"give a local folder; {MOVED}")
        return


def _named(config: Path) -> str | None:
    """The base that an adapter's config names, where it can be read so far."""
    with suppress(OSError, ValueError, ModelError):
        if config.stat().st_size <= claims.MAX_BYTES:
            found = strict_json.parse(config.read_bytes())
            name = found.get("base_model_name_or_path") if isinstance(found, dict) else None
            return name if isinstance(name, str) else None
    return None


def _out_of_reach(hub_id: str) -> str | None:
    """Why a hub id that nobody fetched before cannot be fetched now."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    if place.is_dir():
        return None
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return None if hub_answers(constants.ENDPOINT) else f"{constants.ENDPOINT} cannot be reached"
