"""state.json of a checkpoint, read strictly: whatever is not exactly what a save writes is refused."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroada_cli import files
from neuroada_cli.errors import ModelError
from neuroada_cli.loop import rng
from neuroada_cli.loop.loop import Progress

FORMAT = 1
STATE = "state/state.json"


class NewerFormat(ModelError):
    """A checkpoint that only a newer version can read: older ones beside it are not to be gone on with."""


@dataclass(frozen=True)
class SavedState:
    """What a checkpoint knows beside its tensors.

    log_bytes     length of metrics.jsonl at the save
    rng           the numbers of the random generators' states
    recipe, data  the resolved recipe and the hashes of the data, compared on resume
    """

    progress: Progress
    log_bytes: int
    rng: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self)}


def read_state(checkpoint: Path) -> SavedState:
    """Raises ModelError for anything but the keys, types and ranges that a save writes."""
    file = checkpoint / STATE
    found = files.read_json(file)
    if isinstance(found, dict) and type(found.get("format")) is int and found["format"] > FORMAT:
        raise NewerFormat("was written by a newer version", str(checkpoint), "update neuroada")
    try:
        return _state(found, checkpoint)
    except ValueError as error:
        raise ModelError(f"is not what a save writes: {error}", str(file)) from None


def _state(found: Any, checkpoint: Path) -> SavedState:
    entries = _exactly(found, {"format", *(field.name for field in dataclasses.fields(SavedState))}, "it")
    number = entries.pop("format")
    if type(number) is not int or number != FORMAT:
        raise ValueError("its format is unknown")
    if not _is_count(entries["log_bytes"]):
        raise ValueError("log_bytes is no number of bytes")
    if not isinstance(entries["recipe"], dict):
        raise ValueError("recipe is no mapping")
    data = entries["data"]
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise ValueError("data is no mapping of hashes")
    rng.check_numbers(entries["rng"])
    progress = _progress(entries["progress"])
    if checkpoint.name != f"checkpoint-{progress.step}":
        raise ValueError(f"it is of step {progress.step}")
    return SavedState(**entries | {"progress": progress})


def _progress(found: Any) -> Progress:
    entries = _exactly(found, {field.name for field in dataclasses.fields(Progress)}, "progress")
    step, best, best_step = entries["step"], entries["best"], entries["best_step"]
    for name in ("step", "evaluated", "saved", "stale", *(("best_step",) if best_step is not None else ())):
        if not _is_count(entries[name]) or not _is_count(step) or entries[name] > step:
            raise ValueError(f"progress.{name} is no step of the run")
    if best is not None and type(best) not in (int, float):
        raise ValueError("progress.best is no number")
    if (best is None) != (best_step is None):
        raise ValueError("progress.best and best_step do not go together")
    return Progress(**entries)


def _exactly(found: Any, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(found, dict) or found.keys() != names:
        raise ValueError(f"{what} has not exactly the keys {', '.join(sorted(names))}")
    return dict(found)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
