"""A run's folder: what in it belongs to a run, when it may be written to, and how it is emptied."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from neuroada_cli import files
from neuroada_cli.errors import OutputError

RECIPE, SELECTION, METRICS = "recipe.yaml", "selection.safetensors", "metrics.jsonl"
ENVIRONMENT, PICTURE = "env.json", "training.png"
# In this order: without links and recipe no half-emptied folder looks like a run.
OURS = ("best", "last", RECIPE, METRICS, ENVIRONMENT, PICTURE, SELECTION)


def check(folder: Path, resume: bool, overwrite: bool) -> None:
    """Whether a run may write here; changes nothing. A selection made beforehand is welcome.

    Raises OutputError for a folder that holds something else.
    """
    if resume and overwrite:
        raise OutputError("--resume and --overwrite exclude each other", fix="give one of them")
    if folder.exists() and not folder.is_dir():
        raise OutputError("is a file", str(folder), "name another folder with --out")
    if resume or overwrite or not folder.is_dir():
        return
    others = sorted(
        entry.name for entry in folder.iterdir() if entry.name != SELECTION and not entry.name.startswith(".")
    )
    if others:
        raise OutputError(
            f"is not empty ({', '.join(others[:4])}{', …' if len(others) > 4 else ''})",
            str(folder),
            "--resume goes on, --overwrite starts again, --out names another folder",
        )


def holds_run(folder: Path) -> bool:
    return (folder / RECIPE).exists() or any(folder.glob("checkpoint-*"))


def clear(folder: Path) -> None:
    """Remove a former run and nothing else. Call it while holding the folder's Lock."""
    files.clean_stale(folder)
    if not holds_run(folder):
        return  # perhaps a selection made for the run that starts now
    with files.explained(folder):
        for name in OURS:
            with contextlib.suppress(FileNotFoundError):
                (folder / name).unlink()
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
