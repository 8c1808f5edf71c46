"""Checkpoints: an adapter folder plus everything that an exact resume needs; safetensors and JSON only.

checkpoint-N/            an adapter folder (loads, merges and evaluates like any other)
  state/optimizer.safetensors   "<parameter number>.<Adam's name>"
  state/exact.safetensors       what the method needs beside the adapter (mask: the chosen weights)
  state/rng.safetensors         states of Python's, NumPy's and torch's generators
  state/state.json              progress, log position, recipe and data hashes
last -> checkpoint-N     best -> checkpoint-M
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli import files
from neuroada_cli.adapter import Adapter, read_adapter, write_adapter
from neuroada_cli.errors import ModelError, OutputError, UserError
from neuroada_cli.methods import Method, MethodState
from neuroada_cli.training import rng
from neuroada_cli.training.loop import Progress

FORMAT = 1
# Keys that may change between a save and its resume: they do not touch the course of the training.
FREE_KEYS = ("name", "description", "run_dir", "eval", "train.keep", "data.data_dir", "device")


@dataclass(frozen=True)
class RunCheckpoints:
    """Saves and restores the checkpoints of one run folder.

    adapter       makes the adapter to be written from what the method has learnt
    recipe, data  the resolved recipe and the hashes of the data, compared on resume
    log_position  bytes of metrics.jsonl so far; cut_log puts it back there
    keep          newest checkpoints kept; the best one is kept too
    source        the checkpoint to go on from, None for a fresh run
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
    source: Path | None = None

    def save(
        self, progress: Progress, model: nn.Module, method: Method, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write checkpoint-N completely or not at all, move the links, then drop old ones."""
        name = f"checkpoint-{progress.step}"
        learnt = method.state(model)
        with files.atomic_folder(self.run_dir / name, overwrite=True) as folder:
            write_adapter(folder, self.adapter(learnt), self.tokenizer, self.recipe_yaml)
            state = folder / "state"
            state.mkdir()
            files.write_tensors(state / "optimizer.safetensors", _optimizer_tensors(optimizer))
            if learnt.exact:
                files.write_tensors(state / "exact.safetensors", learnt.exact)
            rng_tensors, rng_numbers = rng.capture()
            files.write_tensors(state / "rng.safetensors", rng_tensors)
            files.write_json(state / "state.json", self._state(progress, rng_numbers))
        self._link(progress)
        self._prune(progress)

    def _state(self, progress: Progress, rng_numbers: dict[str, Any]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "progress": dataclasses.asdict(progress),
            "log_bytes": self.log_position(),
            "rng": rng_numbers,
            "recipe": dict(self.recipe),
            "data": dict(self.data),
        }

    def restore(self, model: nn.Module, method: Method, optimizer: torch.optim.Optimizer) -> Progress:
        """Everything back to where `source` was saved, the log included; a fresh Progress without one."""
        if self.source is None:
            return Progress()
        state = self.source / "state"
        adapter = read_adapter(self.source)
        exact = state / "exact.safetensors"
        exact_tensors = files.read_tensors(exact)[0] if exact.exists() else {}
        saved = files.read_json(state / "state.json")
        optimizer_tensors = files.read_tensors(state / "optimizer.safetensors")[0]
        try:
            method.load_state(
                model, MethodState(adapter.deltas, adapter.whole, exact_tensors, adapter.selection.indices)
            )
            _load_optimizer(optimizer, optimizer_tensors)
            rng.restore(files.read_tensors(state / "rng.safetensors")[0], saved["rng"])
            progress = Progress(**saved["progress"])
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(f"does not fit this run: {error}", str(self.source)) from error
        self.cut_log(saved["log_bytes"])
        self._link(progress)
        return progress

    def _link(self, progress: Progress) -> None:
        files.atomic_link(self.run_dir / "last", f"checkpoint-{progress.step}")
        best = f"checkpoint-{progress.best_step}"
        if progress.best_step is not None and (self.run_dir / best).is_dir():
            files.atomic_link(self.run_dir / "best", best)

    def _prune(self, progress: Progress) -> None:
        """Last of all, so that a kill here costs disk space and nothing else."""
        newest_first = sorted(_numbered(self.run_dir), reverse=True)
        for step, folder in newest_first[self.keep :]:
            if step != progress.best_step:
                shutil.rmtree(folder, ignore_errors=True)


def newest_complete(run_dir: Path) -> Path | None:
    """The newest checkpoint whose files all match its manifest; None when there is no checkpoint at all.

    Raises ModelError when there are some and none is intact.
    """
    problems = []
    for _, folder in sorted(_numbered(run_dir), reverse=True):
        try:
            files.verify_folder(folder)
            if (folder / "state" / "state.json").is_file():
                return folder
            problems.append(f"{folder.name} holds no training state")
        except UserError as error:
            problems.append(error.line())
    if problems:
        raise ModelError(
            f"no checkpoint is intact: {problems[0]}", str(run_dir), "start again with --overwrite"
        )
    return None


def check_unchanged(checkpoint: Path, recipe: Mapping[str, Any], data: Mapping[str, str]) -> None:
    """Raises OutputError showing what differs from the run that wrote `checkpoint`.

    Only keys that leave the course of the training alone may differ (FREE_KEYS).
    """
    saved = files.read_json(checkpoint / "state" / "state.json")
    if saved.get("format", 0) > FORMAT:
        raise ModelError("was written by a newer version", str(checkpoint), "update neuroada")
    moved = [change for change in _differences(saved["recipe"], recipe) if not _is_free(change[0])]
    moved += [(f"data hash of {key}", old, new) for key, old, new in _differences(saved["data"], data)]
    changes = [f"{key}: {str(old)[:40]} -> {str(new)[:40]}" for key, old, new in moved]
    if changes:
        raise OutputError(
            f"the recipe or data changed since it was saved ({'; '.join(changes)})",
            str(checkpoint),
            "undo the change, or start again with --overwrite",
        )


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


def _numbered(run_dir: Path) -> Iterator[tuple[int, Path]]:
    for folder in run_dir.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if number and folder.is_dir() and not folder.is_symlink():
            yield int(number[1]), folder


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{number}.{key}": value for number, entry in state.items() for key, value in entry.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, held in state.items():
        # a fused step trusts these shapes, and would write outside the parameter's memory
        if place >= len(parameters) or any(
            value.numel() != 1 and value.shape != parameters[place].shape for value in held.values()
        ):
            raise ValueError(f"the optimizer's state {place} is of another parameter")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
