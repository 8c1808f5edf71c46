"""Checkpoints: an adapter folder plus everything that an exact resume needs; safetensors and JSON only.

checkpoint-N/            an adapter folder (loads, merges and evaluates like any other)
  state/optimizer.safetensors   "<parameter number>.<Adam's name>", for every trained parameter
  state/exact.safetensors       what the method needs beside the adapter (mask: the chosen weights)
  state/rng.safetensors         states of Python's, NumPy's and torch's generators
  state/state.json              progress, log position, recipe and data hashes
last -> checkpoint-N     best -> checkpoint-M
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli import files
from neuroada_cli.adapter.find import checkpoints
from neuroada_cli.adapter.folder import Adapter, AdapterFolder, open_adapter, read_adapter, write_adapter
from neuroada_cli.errors import ModelError, OutputError, ResourceError, UserError
from neuroada_cli.loop import optimizer_state, rng
from neuroada_cli.loop.loop import Progress
from neuroada_cli.methods.protocol import Method, Shards
from neuroada_cli.methods.state import MethodState
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training.log import MetricsLog
from neuroada_cli.training.saved_state import STATE, NewerFormat, SavedState, read_state

OPTIMIZER, EXACT, RNG = "state/optimizer.safetensors", "state/exact.safetensors", "state/rng.safetensors"
# Keys that may change between a save and its resume: they do not touch the course of the training.
FREE_KEYS = (
    "name",
    "description",
    "run_dir",
    "eval",
    "train.keep",
    "train.parallel",
    "train.report_to",
    "data.data_dir",
    "data.streaming",
    "device",
)
LENGTH_KEYS = ("train.max_steps", "train.epochs")  # how long a run is: it may become longer
SHOWN = 4  # changes told at once


@dataclass(frozen=True)
class RunCheckpoints:
    """Saves and restores the checkpoints of one run folder.

    adapter       makes the adapter to be written from what the method has learnt
    recipe, data  the resolved recipe and the hashes of the data, compared on resume
    log_position  bytes of metrics.jsonl so far; cut_log puts it back there
    keep          newest checkpoints kept; the best one is kept too
    source        the checkpoint to go on from, None for a fresh run
    start         the adapter whose values a fresh run begins with
    ranks         all save and restore together; rank 0 writes
    """

    run_dir: Path
    adapter: Callable[[MethodState], Adapter]
    tokenizer: Any
    recipe_yaml: str
    recipe: Mapping[str, Any]
    data: Mapping[str, str]
    keep: int
    log_position: Callable[[], int]
    cut_log: Callable[[int], None]
    source: AdapterFolder | None = None
    start: AdapterFolder | None = None
    ranks: Ranks = ALONE

    def save(
        self, progress: Progress, model: nn.Module, method: Method, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write checkpoint-N completely or not at all, move the links, then drop old ones."""
        learnt = method.state(model)
        rows = method.rows(model) if isinstance(method, Shards) else None
        moments = optimizer_state.tensors_of(optimizer, rows, self.ranks)
        streams = rng.capture(self.ranks)
        self.ranks.first_does(lambda: self._write(progress, learnt, moments, *streams))

    def _write(
        self,
        progress: Progress,
        learnt: MethodState,
        moments: Mapping[str, Tensor],
        rng_tensors: Mapping[str, Tensor],
        rng_numbers: dict[str, Any],
    ) -> None:
        place = self.run_dir / f"checkpoint-{progress.step}"
        if place.is_dir() and not (place / files.MANIFEST).is_file():  # resuming has passed it over
            with files.explained(place):
                files.remove_folder(place)
        with files.atomic_folder(place, overwrite=True) as folder:
            write_adapter(folder, self.adapter(learnt), self.tokenizer, self.recipe_yaml)
            (folder / STATE).parent.mkdir()
            files.write_tensors(folder / OPTIMIZER, moments)
            if learnt.exact:
                files.write_tensors(folder / EXACT, learnt.exact)
            files.write_tensors(folder / RNG, rng_tensors)
            state = SavedState(progress, self.log_position(), rng_numbers, dict(self.recipe), dict(self.data))
            files.write_json(folder / STATE, state.as_json())
        self._link(progress)
        self._prune(progress)

    def restore(self, model: nn.Module, method: Method, optimizer: torch.optim.Optimizer) -> Progress:
        """Everything back to where `source` was saved, the log included; a fresh Progress without one.

        Raises ModelError for a checkpoint that is broken or of another run.
        """
        if self.source is None:
            if self.start is not None:
                self._begin_with(self.start, model, method)
            return Progress()
        folder = self.source.folder
        saved = read_state(folder)
        optimizer_tensors = files.read_tensors(folder / OPTIMIZER)[0]
        rng_tensors = files.read_tensors(folder / RNG)[0]
        try:
            method.load_state(model, _learnt(self.source))
            rows = method.rows(model) if isinstance(method, Shards) else None
            optimizer_state.load(optimizer, optimizer_tensors, saved.progress.step, rows, self.ranks)
            rng.restore(rng_tensors, saved.rng, self.ranks)
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(f"does not fit this run: {error}", str(folder)) from error

        def go_back() -> None:
            self.cut_log(saved.log_bytes)
            self._link(saved.progress)

        self.ranks.first_does(go_back)
        return saved.progress

    def _begin_with(self, start: AdapterFolder, model: nn.Module, method: Method) -> None:
        try:
            method.load_state(model, _learnt(start))
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(f"this run cannot begin with it: {error}", str(start.folder)) from error

    def _link(self, progress: Progress) -> None:
        files.atomic_link(self.run_dir / "last", f"checkpoint-{progress.step}")
        best = f"checkpoint-{progress.best_step}"
        if progress.best_step is not None and (self.run_dir / best).is_dir():
            files.atomic_link(self.run_dir / "best", best)

    def _prune(self, progress: Progress) -> None:
        """Last of all, so that a kill here costs disk space and nothing else.

        One that somebody reads goes with a later save; what is not complete, or of a step to come, is none.
        """
        complete = [
            (step, folder)
            for step, folder in checkpoints(self.run_dir)
            if step <= progress.step and (folder / files.MANIFEST).is_file()
        ]
        for step, folder in sorted(complete, reverse=True)[self.keep :]:
            if step != progress.best_step:
                with suppress(OSError):
                    files.remove_folder(folder, unless_read=True)


def _learnt(source: AdapterFolder) -> MethodState:
    """What a checkpoint, or an adapter, has learnt. Raises ValueError for numbers that are none."""
    adapter = read_adapter(source)
    file = source.file(EXACT)  # not every method writes one, and nobody may slip one in
    exact = files.read_tensors(file)[0] if file is not None else {}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in exact.values()):
        raise ValueError(f"{EXACT} holds NaN or infinity")
    return MethodState(adapter.deltas, adapter.whole, exact, adapter.selection.indices)


def newest_complete(run_dir: Path) -> Path | None:
    """The folder of `newest_opened`."""
    opened = newest_opened(run_dir)
    return None if opened is None else opened.folder


def newest_opened(
    run_dir: Path, on_skip: Callable[[str, str], object] = lambda name, why: None
) -> AdapterFolder | None:
    """The newest checkpoint that is what was saved, with a log that still holds what it held then.

    on_skip  told the name of each newer one that is not, and what is wrong with it
    None when there is no checkpoint at all. Raises ModelError when there are some and none is intact, and for
    one that a newer version wrote.
    """
    problems: list[tuple[str, str]] = []
    log = MetricsLog(run_dir / run_folder.METRICS)
    for _, folder in sorted(checkpoints(run_dir), reverse=True):
        try:
            opened = open_adapter(folder, also=(STATE, OPTIMIZER, RNG))
            log.check(read_state(folder).log_bytes)
        except (NewerFormat, ResourceError):  # no fault of the checkpoint's
            raise
        except UserError as error:
            problems.append((folder.name, error.line()))
            continue
        for name, why in problems:
            on_skip(name, why)
        return opened
    if problems:
        raise ModelError(
            f"no checkpoint is intact: {problems[0][1]}", str(run_dir), "start again with --overwrite"
        )
    return None


def check_unchanged(
    checkpoint: Path,
    recipe: Mapping[str, Any],
    data: Mapping[str, str],
    steps: int | None = None,
    extend: bool = False,
) -> bool:
    """Whether a run that goes on at `checkpoint` has become longer or shorter than the one that wrote it.

    steps   of the run as it is now
    extend  it may, whatever its learning rate has been so far
    Only keys that leave the course of the training alone may differ (FREE_KEYS), and its length where the
    steps so far are those of the longer run, too: under a constant learning rate.
    Raises OutputError showing what differs, with both values; ModelError for a checkpoint that is none.
    """
    saved = read_state(checkpoint)
    moved = [change for change in _differences(saved.recipe, recipe) if not _is_free(change[0])]
    lengths = [change for change in moved if change[0] in LENGTH_KEYS]
    moved = [change for change in moved if change not in lengths]
    moved += [(f"data hash of {key}", old, new) for key, old, new in _differences(saved.data, data)]
    if lengths and not moved:
        _check_length(lengths, saved, checkpoint, recipe, steps, extend)
        return True
    moved += lengths
    changes = [f"{key[:60]}: {str(old)[:40]} -> {str(new)[:40]}" for key, old, new in moved[:SHOWN]]
    if changes:
        more = f"; and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
        raise OutputError(
            f"the recipe or data changed since it was saved ({'; '.join(changes)}{more})",
            str(checkpoint),
            "undo the change, or start again with --overwrite",
        )
    return False


def _check_length(
    lengths: Sequence[tuple[str, Any, Any]],
    saved: SavedState,
    checkpoint: Path,
    recipe: Mapping[str, Any],
    steps: int | None,
    extend: bool,
) -> None:
    """Raises OutputError for a length that this checkpoint cannot go on to, or only when it is wished."""
    told = "; ".join(f"{key}: {old} -> {new}" for key, old, new in lengths)
    if steps is not None and steps < saved.progress.step:
        raise OutputError(
            f"the run has done {saved.progress.step} steps, and would be {steps} long now ({told})",
            str(checkpoint),
            "choose more, or start again with --overwrite",
        )
    why = _depends_on_length(recipe)
    if why is not None and not extend:
        raise OutputError(
            f"the run is of another length now ({told}), and {why}",
            str(checkpoint),
            "add --extend to go on by the new length from here, or start again with --overwrite",
        )


def _depends_on_length(recipe: Mapping[str, Any]) -> str | None:
    """Why the steps of a run depend on how long it is; None where they do not."""
    optim, train = recipe.get("optim") or {}, recipe.get("train") or {}
    if optim.get("schedule") != "constant":
        return f"its learning rate follows the whole run (optim.schedule={optim.get('schedule')})"
    if optim.get("warmup_ratio"):
        return f"its warmup is a share of the whole run (optim.warmup_ratio={optim['warmup_ratio']})"
    if train.get("reselect_every") is not None:
        return "connections are not chosen anew at its last step (train.reselect_every)"
    return None


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}", before, after
