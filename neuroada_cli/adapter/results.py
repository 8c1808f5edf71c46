"""Where the scores of a model go."""

from __future__ import annotations

from pathlib import Path

from neuroada_cli import files
from neuroada_cli.adapter.load import Target
from neuroada_cli.errors import OutputError
from neuroada_cli.evaluation.places import EVALUATIONS


def results_folder(target: Target) -> Path:
    """The folder of a target's scores where none is named: beside what we wrote ourselves; nothing is put
    into a foreign model folder.
    """
    place = Path(target.name)
    if place.resolve().parent.name == "snapshots":  # the hub's cache, which is not ours to fill
        return Path("eval") / place.resolve().parents[1].name
    if target.adapter is not None and not place.exists():  # of the hub
        return Path("eval") / place.name
    if target.adapter is not None:
        checkpoint = target.adapter.folder.resolve()
        in_run = (checkpoint.parent / "metrics.jsonl").is_file()  # where pruning removes old checkpoints
        if checkpoint == place.resolve() and in_run:
            return _within(checkpoint.parent, EVALUATIONS, checkpoint.name)
        return _within(place, EVALUATIONS)
    if (place / files.MANIFEST).is_file():
        return _within(place, EVALUATIONS)
    return Path("eval") / place.name


def _within(folder: Path, *parts: str) -> Path:
    """Raises OutputError where a link would lead out of the folder, which may be a stranger's."""
    found = folder.joinpath(*parts)
    if not (found / "predictions").resolve().is_relative_to(folder.resolve()):
        raise OutputError("is a link that leaves the folder", str(found), "choose an --out")
    return found
