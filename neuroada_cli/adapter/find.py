"""Which adapter folder a path means, while a training may be writing and removing beside the reader."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from neuroada_cli import files, hub
from neuroada_cli.adapter.folder import AdapterFolder, open_adapter
from neuroada_cli.errors import ModelError
from neuroada_cli.files.folders import ADAPTER_CONFIG, LINKS, holds_anything, is_adapter, is_model
from neuroada_cli.hub.resolve import refuse_dangling

# As a save names it: no other digits, no leading zero, no number that is none of a run's steps.
CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]{0,15})")
NAMED = 3  # runs that a message names
LOOKS = 10  # at a run whose checkpoints come and go; each finds a newer one


def checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, folder) of every checkpoint of a run, complete or not, in no order; links are none, and a
    folder with nothing in it is none.
    """
    for entry in folder.glob("checkpoint-*"):
        number = CHECKPOINT.fullmatch(entry.name)
        if number and not entry.is_symlink() and holds_anything(entry):
            yield int(number[1]), entry


def find_adapter(path: str | os.PathLike[str]) -> Path:
    """The adapter folder that `path` means: itself, or of a run the best checkpoint, else the last one.

    Raises ModelError telling what was found instead.
    """
    folder = Path(path)
    if is_adapter(folder):
        return folder
    refuse_dangling(folder / ADAPTER_CONFIG)
    if not os.path.exists(folder):
        raise ModelError("no such folder", str(path), "name a run or an adapter folder")
    if not os.path.isdir(folder):
        raise ModelError("is a file", str(path), "name a run or an adapter folder")
    by_age = [checkpoint for _, checkpoint in sorted(checkpoints(folder), reverse=True)]
    for candidate in [*(folder / link for link in LINKS), *by_age]:
        if _is_complete(candidate):
            real = Path(os.path.realpath(candidate))
            if real.parent != Path(os.path.realpath(folder)):
                raise ModelError(f"{candidate.name} is a link that leaves the folder", str(path))
            return real if candidate.is_symlink() else candidate
    if is_model(folder):
        raise ModelError("is a model, not an adapter", str(path), "name the run that was trained on it")
    if runs := _runs_in(folder):
        raise ModelError("holds no adapter, but runs", str(path), f"name one of them: {runs}")
    raise ModelError("holds no adapter and no complete checkpoint", str(path), "train first")


def _runs_in(folder: Path) -> str:
    """The folders in it that hold a complete checkpoint, at most a few of them."""
    runs = (
        entry for entry in folder.iterdir() if any(_is_complete(place) for _, place in checkpoints(entry))
    )
    names = sorted(entry.name for entry in runs)
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _is_complete(checkpoint: Path) -> bool:
    return all(os.path.isfile(checkpoint / name) for name in (ADAPTER_CONFIG, files.MANIFEST))


def open_found(path: str | os.PathLike[str]) -> AdapterFolder:
    """The adapter folder that `path` means, opened, and kept from being removed while it is in use.

    path  a folder, or the id of an adapter on the hub
    A training removes old checkpoints and names a better one `best`; where that came in between, the run is
    looked at again. Raises ModelError as `find_adapter` and `open_adapter` do.
    """
    if not os.path.exists(path):
        path = hub.adapter_of_hub(os.fspath(path)) or path
    for look in range(1, LOOKS + 1):
        folder = find_adapter(path)
        reading = files.Reading(folder)
        try:
            return open_adapter(folder, reading=reading)
        except (ModelError, FileNotFoundError):
            if look == LOOKS or reading.is_of(folder):  # it is still there, as it was: so it is broken
                raise
    raise AssertionError("the last look returns or raises")
