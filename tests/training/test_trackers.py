"""Trackers get what metrics.jsonl gets; without their package or key a run is refused before it begins."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import one_thread, stop_in_step, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli.commands import train
from neuroada_cli.errors import ResourceError, Stopped
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training import trackers
from neuroada_cli.training.log import read_metrics


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("trackers") / "model")


def logged(run_dir: Path, kind: str, key: str) -> list[tuple[int, float]]:
    return [(e["step"], e[key]) for e in read_metrics(run_dir / "metrics.jsonl") if e["kind"] == kind]


def scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_shows_a_resumed_run_as_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(
        model, tmp_path / "run", train={"report_to": ["tensorboard"], "save_every": 2, "epochs": 1}
    )
    with monkeypatch.context() as patch:
        stop_in_step(patch, 4)
        with pytest.raises(Stopped):
            train.run(recipe, quiet=True)
    train.run(recipe, resume=True, quiet=True)
    for kind, key, tag in (
        ("train", "loss", "train/loss"),
        ("train", "grad_norm", "train/grad_norm"),
        ("eval", "loss", "eval/loss"),
    ):
        found = scalars(recipe.run_path, tag)
        assert found == [
            (step, pytest.approx(value, rel=1e-6)) for step, value in logged(recipe.run_path, kind, key)
        ]
        assert found
    run_folder.clear(recipe.run_path)
    assert not list(recipe.run_path.glob("*"))  # what a tracker kept goes with the run


def records(data: bytes) -> Iterator[bytes]:
    """Of a .wandb file: LevelDB's log after 7 bytes of its own, parts (checksum, length, kind) in blocks."""
    block, place, whole = 1 << 15, 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield whole
            whole = b""


@pytest.mark.slow  # its own process takes seconds to end
def test_weights_and_biases_offline(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe = tiny_recipe(model, tmp_path / "run", train={"report_to": ["wandb"], "epochs": 1})
    train.run(recipe, quiet=True)
    (file,) = (recipe.run_path / "wandb").glob("offline-run-*/*.wandb")
    losses, config = [], {}
    for data in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        values: dict[str, Any] = {
            item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
        }
        if "train/loss" in values:
            losses.append((values["_step"], values["train/loss"]))
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    assert losses == logged(recipe.run_path, "train", "loss")
    assert config["optim"]["lr"] == recipe.optim.lr


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    from trackio.sqlite_storage import SQLiteStorage

    recipe = tiny_recipe(model, tmp_path / "run", train={"report_to": ["trackio"], "epochs": 1})
    train.run(recipe, quiet=True)
    logs = SQLiteStorage.get_logs("neuroada", recipe.name)
    found = [(each["step"], each["train/loss"]) for each in logs if "train/loss" in each]
    assert found == logged(recipe.run_path, "train", "loss")


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else known(name))
    with pytest.raises(ResourceError, match=r"needs the package wandb.*neuroada-cli\[wandb\]"):
        trackers.require(["tensorboard", "wandb"])


def test_weights_and_biases_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(ResourceError, match="WANDB_MODE=offline"):
        trackers.require(["wandb"])


def test_a_tracker_that_fails_is_named_once_and_costs_no_step() -> None:
    class Broken:
        def log(self, step: int, values: object) -> None:
            raise ConnectionError("no answer")

        def close(self) -> None:
            raise AssertionError("it was left out")

    lines: list[str] = []
    track = trackers.Track(lines.append)
    track.add("wandb", Broken)
    entry = {"kind": "eval", "step": 1, "loss": 1.0, "metric": None}
    track.entry(entry)
    track.entry(entry)
    track.close()
    assert len(lines) == 1
    assert "wandb failed and is left out: no answer" in lines[0]
