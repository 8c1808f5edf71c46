"""What is written while faults are injected, and what may be found afterwards."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from inject import Scenario

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import pico_llama
from tiny_adapter import tiny_adapter, tiny_selection, write
from tiny_choice import selected
from tiny_run import tiny_llama_folder, tiny_recipe, tiny_tokenizer

from neuroada_cli import files, hub
from neuroada_cli.adapter.folder import Adapter, read_adapter, write_adapter
from neuroada_cli.commands import merge, train
from neuroada_cli.evaluation.records import Records
from neuroada_cli.evaluation.results import Prediction
from neuroada_cli.evaluation.run import summarise
from neuroada_cli.files import hashed
from neuroada_cli.loop.loop import Progress
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.file import read_selection, write_selection
from neuroada_cli.tasks.registry import TASKS
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training import picture
from neuroada_cli.training.checkpoint import RunCheckpoints, newest_complete

OLD, NEW = 0, 1  # seeds


def _nothing(folder: Path) -> None:
    """Before: an empty folder."""


def _version(values: dict[str, torch.Tensor], of: Callable[[int], dict[str, torch.Tensor]]) -> str:
    for seed, name in ((OLD, "old"), (NEW, "new")):
        if all(torch.equal(values[key], tensor) for key, tensor in of(seed).items()):
            return name
    raise AssertionError("holds values that nobody wrote")


# ---------------------------------------------------------------------------------------------------
# An adapter folder, a selection, weights, a log, a link


def _adapter_state(folder: Path) -> str:
    if not (folder / "adapter").exists():
        return "absent"
    return _version(read_adapter(folder / "adapter").deltas, lambda seed: tiny_adapter(seed).deltas)


def _write_adapter(folder: Path, seed: int) -> None:
    write(folder / "adapter", seed, overwrite=True)


def _selection_state(folder: Path) -> str:
    if not (folder / "selection.safetensors").exists():
        return "absent"
    read = read_selection(folder / "selection.safetensors")
    return _version(read.indices, lambda seed: tiny_selection(seed).indices)


def _write_selection(folder: Path, seed: int) -> None:
    write_selection(folder / "selection.safetensors", tiny_selection(seed))


LINES = [{"step": 1, "loss": 1.5}, {"step": 2, "loss": 1.25}]


def _log_state(folder: Path) -> str:
    """A kill may tear the line that is being written, never one before it, and never glue two together."""
    data = (folder / "metrics.jsonl").read_bytes()
    whole, _, torn = data.rpartition(b"\n")
    lines = [json.loads(line) for line in whole.split(b"\n")]
    assert lines in (LINES[:1], LINES)
    assert (json.dumps(LINES[1]) + "\n").encode().startswith(torn)
    return "new" if lines == LINES else "old"


def _link(folder: Path, number: int) -> None:
    files.atomic_link(folder / "last", f"checkpoint-{number}")


def _link_state(folder: Path) -> str:
    return {"checkpoint-0": "old", "checkpoint-1": "new"}[os.readlink(folder / "last")]


def _write_weights(folder: Path, seed: int) -> None:
    """As a large file is written: chunk by chunk, by another thread, past the system's cache."""
    with mock.patch.multiple(hashed, CHUNK=hashed.BLOCK, PAST_CACHE=0):
        files.write_tensors(folder / "weights.safetensors", _weights(seed))


def _weights(seed: int) -> dict[str, torch.Tensor]:
    return {"w": torch.arange(6000.0) + seed}  # six chunks


def _weights_state(folder: Path) -> str:
    if not (folder / "weights.safetensors").exists():
        return "absent"
    return _version(files.read_tensors(folder / "weights.safetensors")[0], _weights)


# ---------------------------------------------------------------------------------------------------
# A checkpoint with everything in it: links moved, an older one pruned


@functools.cache
def _training() -> tuple[RunCheckpoints, tuple[object, object, object]]:
    model, method = pico_llama(), METHODS["neuroada"].build()
    modules = {name: m for name, m in model.named_modules() if name.endswith("up_proj")}
    selection = tiny_selection()
    indices = {
        name: torch.arange(2, dtype=torch.int32).repeat(m.out_features, 1) for name, m in modules.items()
    }
    method.attach(model, indices)
    optimizer = torch.optim.AdamW(method.parameters(model), lr=0.1)
    for parameter in method.parameters(model):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    def adapter(state: object) -> Adapter:
        whole = type(selection)(indices, 2, "magnitude", selection.fingerprint)
        return Adapter(whole, state.deltas, state.whole, "base/model", None, "causal-lm")  # type: ignore[attr-defined]

    checkpoints = RunCheckpoints(
        Path(), adapter, tiny_tokenizer(), "name: tiny\n", {}, {}, 1, lambda: 0, lambda position: None
    )
    return checkpoints, (model, method, optimizer)


def _save(folder: Path, *steps: int) -> None:
    checkpoints, parts = _training()
    checkpoints = dataclasses.replace(checkpoints, run_dir=folder)
    for step in steps:
        checkpoints.save(Progress(step=step, best=1.0, best_step=1), *parts)  # type: ignore[arg-type]


def _run_state(folder: Path) -> str:
    """The newest complete checkpoint is 2 or 3, the best one is there, and no link points nowhere."""
    newest = newest_complete(folder)
    assert newest is not None
    read_adapter(newest)
    step = files.read_json(newest / "state" / "state.json")["progress"]["step"]
    assert newest.name == f"checkpoint-{step}"
    last, best = folder / "last", folder / "best"
    assert os.readlink(best) == "checkpoint-1"
    for link in (last, best):
        files.verify_folder(link)
    assert os.readlink(last) in ("checkpoint-2", newest.name)
    return {2: "old", 3: "new"}[step]


# ---------------------------------------------------------------------------------------------------
# A merge


def _prepare_merge(folder: Path) -> None:
    base = tiny_llama_folder(folder / "base")
    selection = selected(base, ["up_proj"], 2)
    deltas = {name: torch.full(index_OK.shape, 0.5) for name, index_OK in selection.indices.items()}
    with files.atomic_folder(folder / "adapter") as temporary:
        write_adapter(temporary, Adapter(selection, deltas, {}, str(base), None, "causal-lm"))
    files.write_json(folder / "before.json", _hashes(base))


def _hashes(base: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(base.iterdir())}


def _merge(folder: Path) -> None:
    base = str(folder / "base")
    merge.run(str(folder / "adapter"), str(folder / "out"), base=base, max_shard_bytes=60_000, quiet=True)


def _merge_state(folder: Path) -> str:
    read_adapter(folder / "adapter")
    assert _hashes(folder / "base") == files.read_json(folder / "before.json"), "the base was touched"
    if not (folder / "out").exists():
        return "absent"
    files.verify_folder(folder / "out")
    merged, base = hub.open_weights(folder / "out"), hub.open_weights(folder / "base")
    assert set(merged.names) == set(base.names)
    differing = {name for name in base.names if not torch.equal(merged.tensor(name), base.tensor(name))}
    assert len(differing) == 2
    return "new"


# ---------------------------------------------------------------------------------------------------
# A whole training in the place of another


def _prepare_train(folder: Path) -> None:
    tiny_llama_folder(folder.parent / "llama")  # beside the cases, which are copies of `folder`
    _train(folder, OLD, overwrite=False)


def _train(folder: Path, version: int, overwrite: bool) -> None:
    """One step. The picture is drawn quickly: what counts is how it is written."""

    def draw(entries: Any, path: Path, title: str) -> None:
        files.write_text(path, title)

    recipe = tiny_recipe(
        folder.parent / "llama", folder, select={"k": 1 + version},
        data={"limit": 4, "validation_limit": 2}, train={"epochs": 1},
    )  # fmt: skip
    with mock.patch.object(picture, "draw", draw):
        train.run(recipe, overwrite=overwrite, quiet=True)


def _train_state(folder: Path) -> str:
    """Whatever is found, the run can be started again or gone on with, and no checkpoint is a half one."""
    for resume in (False, True):
        run_folder.check(folder, resume=resume, overwrite=not resume)
    newest = newest_complete(folder)
    if newest is None:
        return "on the way"
    for link in run_folder.LINKS:
        if (folder / link).is_symlink():
            files.verify_folder(folder / link)
    if read_adapter(newest).selection.k == 1 + NEW:
        assert "k: 2" in (folder / "recipe.yaml").read_text(encoding="utf-8")
        return "new"
    return "old" if all((folder / name).exists() for name in run_folder.OURS) else "on the way"


# ---------------------------------------------------------------------------------------------------
# An evaluation that goes on after a stop

TASK, SETTINGS = "boolq", {"protocol": "reft"}
ROWS = [Prediction(number, f"p{number}", "é", "true", "true", True) for number in range(4)]


def _evaluate(folder: Path, rows: list[Prediction]) -> None:
    records = Records(folder)
    done = records.resume(TASK, SETTINGS).done
    records.add(TASK, [row for row in rows if row.row not in done], 1.0, 8)
    if rows == ROWS:
        records.finish(TASK, rows, summarise(TASKS[TASK], rows, 1.0, 8), SETTINGS)


def _evaluation_state(folder: Path) -> str:
    """Finished with every row, or what was done is there and can be gone on with."""
    finished = Records(folder).finished(TASK, SETTINGS)
    if finished is not None:
        assert finished == (ROWS, summarise(TASKS[TASK], ROWS, 1.0, 8))
        return "new"
    with tempfile.TemporaryDirectory(dir=folder.parent) as copy:  # to go on is to clean, and to write
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        progress = Records(Path(copy)).resume(TASK, SETTINGS)
        assert not [file for file in Path(copy).rglob(".*") if ".tmp-" in file.name]
    assert list(progress.done.values()) in (ROWS[:2], ROWS)
    return "old"


SCENARIOS = {
    "adapter, new": Scenario(_nothing, functools.partial(_write_adapter, seed=NEW), _adapter_state),
    "adapter, overwritten": Scenario(
        functools.partial(_write_adapter, seed=OLD),
        functools.partial(_write_adapter, seed=NEW),
        _adapter_state,
    ),
    "adapter, overwritten without exchange": Scenario(
        functools.partial(_write_adapter, seed=OLD),
        functools.partial(_write_adapter, seed=NEW),
        _adapter_state,
        exchange=False,
    ),
    "selection, new": Scenario(_nothing, functools.partial(_write_selection, seed=NEW), _selection_state),
    "selection, overwritten": Scenario(
        functools.partial(_write_selection, seed=OLD),
        functools.partial(_write_selection, seed=NEW),
        _selection_state,
    ),
    "weights, overwritten": Scenario(
        functools.partial(_write_weights, seed=OLD),
        functools.partial(_write_weights, seed=NEW),
        _weights_state,
    ),
    "log line": Scenario(
        lambda folder: files.append_jsonl(folder / "metrics.jsonl", LINES[0]),
        lambda folder: files.append_jsonl(folder / "metrics.jsonl", LINES[1]),
        _log_state,
    ),
    "link": Scenario(functools.partial(_link, number=0), functools.partial(_link, number=1), _link_state),
    "checkpoint": Scenario(
        lambda folder: _save(folder, 1, 2),
        lambda folder: _save(folder, 3),
        _run_state,
        passed_over=frozenset({"rename"}),  # of a checkpoint to be pruned, which the next save tries again
    ),
    "merge": Scenario(_prepare_merge, _merge, _merge_state),
    "evaluation": Scenario(
        lambda folder: _evaluate(folder, ROWS[:2]), lambda folder: _evaluate(folder, ROWS), _evaluation_state
    ),
    "training, overwritten": Scenario(
        _prepare_train, lambda folder: _train(folder, NEW, overwrite=True), _train_state, between="on the way"
    ),
}
