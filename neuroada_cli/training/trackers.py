"""Trackers beside metrics.jsonl, which is written always: TensorBoard, Weights & Biases, Trackio.

A tracker is given what a step or an evaluation puts into metrics.jsonl. Each is an optional package; what it
keeps of a run on this machine lies where its own tools look for it: TensorBoard's and W&B's in the run
folder, Trackio's in its cache.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from neuroada_cli.errors import ResourceError
from neuroada_cli.recipe.schema import Recipe

PROJECT = "neuroada"  # where W&B and Trackio put runs, unless $WANDB_PROJECT or $TRACKIO_PROJECT says so
FOLDERS = ("tensorboard", "wandb")  # in the run folder
OFFLINE = ("offline", "disabled", "dryrun")


class Tracker(Protocol):
    """values are numbers by name, like train/loss; steps never go back within one process."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files; a resumed run hides what was logged after the checkpoint that it goes on from."""

    def __init__(self, recipe: Recipe, resumed_at: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resumed_at is None else resumed_at + 1
        place = str(recipe.run_path / "tensorboard")
        self._writer: Any = SummaryWriter(place, purge_step=purge)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A resumed run goes on under its id; W&B itself ignores steps that it has seen already."""

    def __init__(self, recipe: Recipe, resumed_at: int | None) -> None:
        wandb: Any = importlib.import_module("wandb")
        folder = recipe.run_path
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=recipe.name,
            dir=str(folder),
            id=None if resumed_at is None else _wandb_id(folder),
            resume=None if resumed_at is None else "allow",
            config=recipe.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A local database that `trackio show` reads."""

    def __init__(self, recipe: Recipe, resumed_at: int | None) -> None:
        trackio: Any = importlib.import_module("trackio")
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=recipe.name,
            config=recipe.model_dump(mode="json"),
            resume="never" if resumed_at is None else "allow",
            embed=False,
        )
        self._trackio = trackio

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        self._trackio.finish()


TRACKERS: dict[str, Callable[[Recipe, int | None], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def require(names: Sequence[str]) -> None:
    """Raises ResourceError for a tracker whose package, or whose key, is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ResourceError(
                f"train.report_to: {name} needs the package {name}, which is not installed",
                fix=f"pip install 'neuroada-cli[{name}]'",
            )
    if "wandb" in names and os.environ.get("WANDB_MODE", "online") not in OFFLINE:
        wandb: Any = importlib.import_module("wandb")
        if not wandb.login(prompt=False):
            raise ResourceError(
                "train.report_to: wandb needs a key, and there is none on this machine",
                fix="wandb login, or WANDB_MODE=offline",
            )


@contextmanager
def tracked(recipe: Recipe, resumed_at: int | None, say: Callable[[str], None]) -> Iterator[Track]:
    """The recipe's trackers, closed whatever happens.

    resumed_at  the step that a resumed run goes on from
    say         is told of a tracker that fails; the training goes on without it
    """
    track = Track(say)
    try:
        for name in recipe.train.report_to:
            track.add(name, lambda name=name: TRACKERS[name](recipe, resumed_at))  # type: ignore[misc]
        yield track
    finally:
        track.close()


class Track:
    """Several trackers as one. One that fails is named once and left out from there on: no training is lost
    to a server that does not answer.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._trackers: dict[str, Tracker] = {}

    def add(self, name: str, start: Callable[[], Tracker]) -> None:
        self._try(name, lambda: self._trackers.__setitem__(name, start()))

    def entry(self, entry: Mapping[str, Any]) -> None:
        """What metrics.jsonl got for a step or an evaluation."""
        if entry["kind"] == "train":
            self._step(entry)
        else:
            self._evaluation(entry)

    def _step(self, entry: Mapping[str, Any]) -> None:
        seconds = max(float(entry["seconds"]), 1e-9)
        unit = "tokens" if entry["tokens"] else "rows"
        values = {f"train/{key}": float(entry[key]) for key in ("loss", "lr", "grad_norm")}
        values[f"train/{unit}_per_second"] = entry[unit] / seconds
        values["train/peak_gb"] = entry["peak_bytes"] / 1e9
        self._log(int(entry["step"]), values)

    def _evaluation(self, entry: Mapping[str, Any]) -> None:
        values = {"eval/loss": float(entry["loss"])}
        if entry["metric"] is not None:
            values[f"eval/{entry['metric_name']}"] = float(entry["metric"])
        self._log(int(entry["step"]), values)

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.close)

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        for name, tracker in list(self._trackers.items()):
            self._try(name, lambda tracker=tracker: tracker.log(step, values))  # type: ignore[misc]

    def _try(self, name: str, what: Callable[[], object]) -> None:
        try:
            what()
        except Exception as error:  # whatever a client, a disk or a network raises
            self._trackers.pop(name, None)
            self._say(
                f"{name} failed and is left out: {error or type(error).__name__}; metrics.jsonl goes on"
            )


def _wandb_id(folder: Path) -> str | None:
    """The id of the run's last session, which ends its folder's name: run-20261129_084500-ID."""
    sessions = sorted((folder / "wandb").glob("*run-*-*"), key=lambda entry: entry.stat().st_mtime)
    return sessions[-1].name.rpartition("-")[2] if sessions else None
