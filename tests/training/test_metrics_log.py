"""metrics.jsonl: on the disk before a checkpoint counts on it, and read as strictly as anything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from neuroada_cli import files
from neuroada_cli.errors import ModelError
from neuroada_cli.training.log import MetricsLog, read_metrics

STEP = {"kind": "train", "step": 1, "loss": 2.5, "lr": 1e-3, "grad_norm": 1.0}
EVALUATION = {"kind": "eval", "step": 1, "loss": 2.0, "metric": None, "metric_name": None, "best": True}


def test_its_length_is_told_only_when_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, synced = MetricsLog(tmp_path / "metrics.jsonl"), list[int]()
    original = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert log.settled() == 0
    log.append(STEP)
    assert synced == []  # a step does not wait for the disk
    assert log.settled() == log.path.stat().st_size
    assert synced == [log.path.stat().st_ino, tmp_path.stat().st_ino]


def test_a_line_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(STEP)
    log.append(EVALUATION)
    with log.path.open("ab") as file:
        file.write(b'{"kind": "tr')
    assert read_metrics(log.path) == [STEP, EVALUATION]
    assert read_metrics(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "7",
        "{",
        '{"kind": "train"}',
        '{"kind": ["train"], "step": 1, "loss": 1.0}',
        '{"kind": "train", "step": true, "loss": 1.0, "lr": 1.0, "grad_norm": 1.0}',
        '{"kind": "train", "step": 1, "loss": NaN, "lr": 1.0, "grad_norm": 1.0}',
        '{"kind": "train", "step": 1, "loss": "1", "lr": 1.0, "grad_norm": 1.0}',
        '{"kind": "eval", "step": 1, "loss": 1.0, "metric": 1.0, "metric_name": null, "best": true}',
        '{"kind": "eval", "step": 1, "loss": 1.0, "metric": null, "metric_name": null}',
        "\ufffd\0",
    ],
)
def test_what_is_no_entry_is_named_by_its_line(line: str, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(STEP)
    with log.path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ModelError, match=r"metrics\.jsonl:2: ") as caught:
        read_metrics(log.path)
    assert caught.value.exit_code == 4


def test_a_log_that_lost_what_a_checkpoint_counts_on_is_refused(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for _ in range(3):
        log.append(STEP)
    length = log.settled()
    log.check(length)
    for wrong in (length + 1, length - 1):
        with pytest.raises(ModelError, match=f"does not hold the {wrong} bytes of whole lines"):
            log.check(wrong)
    log.path.unlink()
    with pytest.raises(ModelError):
        log.check(length)
    log.check(0)


def test_settling_tells_what_the_disk_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuroada_cli.errors import ResourceError

    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(STEP)

    def refuse(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written: Input/output error"):
        files.settle(log.path)
