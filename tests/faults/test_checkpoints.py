"""Checkpoints that agree with their manifest and are none: refused, or passed over for an older one."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scenarios import _training
from tiny_adapter import reseal

from neuroada_cli import files
from neuroada_cli.adapter.folder import AdapterFolder
from neuroada_cli.errors import ModelError
from neuroada_cli.loop import optimizer_state
from neuroada_cli.loop.loop import Progress
from neuroada_cli.training.checkpoint import RunCheckpoints, newest_complete
from neuroada_cli.training.log import MetricsLog, read_metrics
from neuroada_cli.training.saved_state import STATE, read_state

STEP = {"kind": "train", "step": 1, "loss": 2.5, "lr": 1e-3, "grad_norm": 1.0}


def checkpoints_in(run_dir: Path, source: Path | None = None) -> RunCheckpoints:
    log = MetricsLog(run_dir / "metrics.jsonl")
    opened = None if source is None else AdapterFolder(source, {"files": {}})
    return dataclasses.replace(
        _training()[0], run_dir=run_dir, keep=9, log_position=log.settled, cut_log=log.cut, source=opened
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with two checkpoints, each after one more line of the log."""
    _, parts = _training()
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        log.append(STEP)
        progress = Progress(step=step, evaluated=step, saved=step, best=1.5, best_step=1, stale=step - 1)
        checkpoints_in(tmp_path).save(progress, *parts)  # type: ignore[arg-type]
    return tmp_path


def restored(checkpoint: Path) -> Progress:
    return checkpoints_in(checkpoint.parent, checkpoint).restore(*_training()[1])  # type: ignore[arg-type]


def change_state(checkpoint: Path, change: Callable[[Any], Any]) -> None:
    file = checkpoint / STATE
    found = json.loads(file.read_text(encoding="utf-8"))
    changed = change(found)
    file.write_text(json.dumps(found if changed is None else changed), encoding="utf-8")
    reseal(checkpoint)


def change_tensors(checkpoint: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors, _ = files.read_tensors(checkpoint / "state" / name)
    change(tensors)
    files.write_tensors(checkpoint / "state" / name, tensors)
    reseal(checkpoint)


def test_lines_after_the_checkpoint_are_forgotten_with_its_steps(run_dir: Path) -> None:
    """The process died between two saves: those steps run again, and log again."""
    log = MetricsLog(run_dir / "metrics.jsonl")
    for step in (3, 4):
        log.append(STEP | {"step": step})
    assert restored(run_dir / "checkpoint-2").step == 2
    assert len(read_metrics(log.path)) == 2
    restored(run_dir / "checkpoint-1")
    assert len(read_metrics(log.path)) == 1


def test_what_was_saved_comes_back(run_dir: Path) -> None:
    drawn = torch.rand(3), random.random(), np.random.rand()  # right after the save
    newest = newest_complete(run_dir)
    assert newest == run_dir / "checkpoint-2"
    _, (model, method, optimizer) = _training()
    deltas = {name: delta.clone() for name, delta in method.state(model).deltas.items()}  # type: ignore[attr-defined]
    moments = {key: tensor.clone() for key, tensor in optimizer_state.tensors_of(optimizer).items()}  # type: ignore[arg-type]
    for parameter in method.parameters(model):  # type: ignore[attr-defined]
        parameter.data.fill_(7)
        optimizer.state[parameter]["exp_avg"].fill_(7)  # type: ignore[attr-defined]
    assert restored(newest) == Progress(2, 2, 2, 1.5, 1, 1)
    assert torch.equal(torch.rand(3), drawn[0])
    assert (random.random(), np.random.rand()) == drawn[1:]
    now = method.state(model).deltas  # type: ignore[attr-defined]
    assert all(torch.equal(now[name], delta) for name, delta in deltas.items())
    again = optimizer_state.tensors_of(optimizer)  # type: ignore[arg-type]
    assert again.keys() == moments.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in moments.items())


def progress(**values: Any) -> Callable[[Any], Any]:
    def change(found: Any) -> None:
        found["progress"] |= values

    return change


def entry(**values: Any) -> Callable[[Any], Any]:
    def change(found: Any) -> None:
        found |= values

    return change


NUMBERS = {"python": [3, None], "numpy": ["MT19937", 624, 0, 0.0]}


@pytest.mark.parametrize(
    "change",
    [
        lambda found: [1],
        lambda found: {},
        lambda found: found.pop("rng") and None,
        entry(more=1),
        entry(format=True),
        entry(format="1"),
        entry(format=0),
        entry(log_bytes=-1),
        entry(log_bytes=1.0),
        entry(log_bytes=None),
        entry(recipe=[]),
        entry(data={"train": 1}),
        entry(data="x"),
        entry(progress=[]),
        progress(step=3),
        progress(step=-2),
        progress(step="2"),
        progress(step=True),
        progress(saved=3),
        progress(evaluated=None),
        progress(stale=-1),
        progress(best="low"),
        progress(best=None),
        progress(best_step=None),
        progress(best_step="../../x"),
        progress(best_step=9),
        progress(more=1),
        lambda found: found["progress"].pop("stale") and None,
        entry(rng={}),
        entry(rng={**NUMBERS, "numpy": ["PCG64", 624, 0, 0.0]}),
        entry(rng={**NUMBERS, "numpy": ["MT19937", 625, 0, 0.0]}),
        entry(rng={**NUMBERS, "numpy": ["MT19937", 624, 0, "0"]}),
        entry(rng={**NUMBERS, "python": [2, None]}),
        entry(rng={**NUMBERS, "python": [3, []]}),
    ],
)
def test_a_state_that_is_none_is_refused_and_passed_over(change: Callable[[Any], Any], run_dir: Path) -> None:
    newest = run_dir / "checkpoint-2"
    change_state(newest, change)
    with pytest.raises(ModelError, match=r"state\.json: is not what a save writes: ") as caught:
        read_state(newest)
    assert caught.value.exit_code == 4
    with pytest.raises(ModelError):
        restored(newest)
    assert newest_complete(run_dir) == run_dir / "checkpoint-1"
    change_state(run_dir / "checkpoint-1", lambda found: [])
    with pytest.raises(ModelError, match=r"no checkpoint is intact: .*--overwrite"):
        newest_complete(run_dir)


def test_a_newer_format_is_not_passed_over(run_dir: Path) -> None:
    change_state(run_dir / "checkpoint-2", entry(format=2, strange=1))
    with pytest.raises(ModelError, match="was written by a newer version; update neuroada"):
        newest_complete(run_dir)


def first(tensors: dict[str, torch.Tensor], kind: str) -> str:
    return next(name for name in tensors if name.endswith(kind))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.clear(),  # which would start AdamW again without a word
        lambda t: t.pop(first(t, "exp_avg")),
        lambda t: t.update({"99.exp_avg": torch.zeros(2)}),
        lambda t: t.update({first(t, "exp_avg"): torch.zeros(1, 1)}),
        lambda t: t.update({first(t, "exp_avg"): t[first(t, "exp_avg")].double()}),
        lambda t: t[first(t, "exp_avg")].fill_(torch.nan),
        lambda t: t[first(t, "exp_avg_sq")].fill_(torch.inf),
        lambda t: t[first(t, "exp_avg_sq")].fill_(-1),
        lambda t: t[first(t, "step")].fill_(3),
        lambda t: t[first(t, "step")].fill_(0.5),
        lambda t: t[first(t, "step")].fill_(-1),
        lambda t: t.update({first(t, "step"): torch.ones(2)}),
    ],
)
def test_an_optimizer_that_is_not_of_this_run_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object], run_dir: Path
) -> None:
    newest = run_dir / "checkpoint-2"
    change_tensors(newest, "optimizer.safetensors", change)
    with pytest.raises(ModelError, match=r"checkpoint-2: does not fit this run: the optimizer's state"):
        restored(newest)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.clear(),
        lambda t: t.pop("torch"),
        lambda t: t.update(torch=t["torch"][:-1].clone()),
        lambda t: t.update(torch=t["torch"].long()),
        lambda t: t.update(python=t["python"][:-1].clone()),
        lambda t: t["python"].fill_(-1),
        lambda t: t["python"][-1:].fill_(9999),
        lambda t: t["numpy"].fill_(2**32),
        lambda t: t.update(numpy=t["numpy"].int()),
        lambda t: t.update(other=torch.zeros(1)),
    ],
)
def test_random_states_that_are_none_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], run_dir: Path
) -> None:
    newest = run_dir / "checkpoint-2"
    change_tensors(newest, "rng.safetensors", change)
    with pytest.raises(ModelError, match="checkpoint-2: does not fit this run"):
        restored(newest)


def test_a_tensor_file_that_the_manifest_does_not_name_is_not_read(run_dir: Path) -> None:
    (run_dir / "checkpoint-2" / "state" / "exact.safetensors").write_bytes(b"slipped in")
    assert restored(run_dir / "checkpoint-2").step == 2
    (run_dir / "checkpoint-1" / "state" / "optimizer.safetensors").unlink()
    manifest = json.loads((run_dir / "checkpoint-1" / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"]["state/optimizer.safetensors"]
    (run_dir / "checkpoint-1" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    files.remove_folder(run_dir / "checkpoint-2")
    with pytest.raises(ModelError, match=r"does not list state/optimizer\.safetensors"):
        newest_complete(run_dir)


def test_a_log_that_lost_lines_leads_back_to_where_it_is_whole(run_dir: Path) -> None:
    file = run_dir / "metrics.jsonl"
    whole = file.read_bytes()
    half = len(whole) // 2
    for cut, expected in ((whole, 2), (whole[:-1], 1), (whole[:half], 1), (whole + b'{"half', 2)):
        file.write_bytes(cut)
        assert newest_complete(run_dir) == run_dir / f"checkpoint-{expected}"
    for broken in (b"", whole[: half - 1], b"[1]\n" + whole):
        file.write_bytes(broken)
        with pytest.raises(ModelError, match=r"no checkpoint is intact: .*metrics\.jsonl"):
            newest_complete(run_dir)


def test_a_parameter_without_a_gradient_so_far_goes_on_like_any_other() -> None:
    """An expert that no token reached has no state yet; AdamW begins its state at zero."""
    ends = []
    for stopped in (False, True):
        torch.manual_seed(0)
        used, idle = (torch.nn.Parameter(torch.randn(3)) for _ in range(2))
        optimizer = torch.optim.AdamW([used, idle], lr=0.1, fused=True)
        for step in range(6):
            used.grad = torch.full((3,), 0.5 + step)
            idle.grad = torch.full((3,), 1.0) if step > 3 else None
            optimizer.step()
            if stopped and step == 2:
                tensors = {key: value.clone() for key, value in optimizer_state.tensors_of(optimizer).items()}
                assert {key.partition(".")[0] for key in tensors} == {"0", "1"}
                optimizer = torch.optim.AdamW([used, idle], lr=0.1, fused=True)
                optimizer_state.load(optimizer, tensors, 3)
        ends.append([used.detach(), idle.detach(), *optimizer_state.tensors_of(optimizer).values()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
