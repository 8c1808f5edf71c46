"""Losses that jump are flagged in the log, in a line of their own and in the picture; after a stop, too."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from neuroada_cli.loop.spikes import LEAST, WINDOW, SpikeWatch
from neuroada_cli.loop.step import StepStats
from neuroada_cli.training import picture
from neuroada_cli.training.live import LiveReport
from neuroada_cli.training.log import MetricsLog, read_metrics

QUIET = [1.0 + 0.01 * (step % 3) for step in range(30)]


def flagged(losses: list[float]) -> list[int]:
    watch = SpikeWatch()
    return [at for at, loss in enumerate(losses) if watch.usual_before(loss) is not None]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([*QUIET, 5.0, *QUIET], [30]),
        ([*QUIET, 1.9, *QUIET], []),  # far outside what is usual, but less than twice the mean
        ([1.0, 3.0] * 15 + [5.0], []),  # more than twice the mean, but such losses are usual
        ([*QUIET[: LEAST - 1], 9.0], []),  # nothing to compare with yet
        ([*QUIET, 5.0, 5.0, 5.0], [30]),  # a new plateau is told once
        ([*[9.0] * 30, *[1.0] * WINDOW, 4.0], [30 + WINDOW]),  # what is long past does not count
        ([0.5 * 0.9**step for step in range(60)], []),
    ],
)
def test_a_spike_is_far_above_the_steps_before_it(losses: list[float], expected: list[int]) -> None:
    assert flagged(losses) == expected


def test_the_mean_before_it_is_told() -> None:
    watch = SpikeWatch([1.0] * 20)
    assert watch.usual_before(8.0) == 1.0


def report_on(file: Path, losses: list[float], first: int, shown: io.StringIO) -> None:
    report = LiveReport(MetricsLog(file), torch.device("cpu"), Console(file=shown, width=200))
    for step, loss in enumerate(losses[first:], start=first + 1):
        report.step(StepStats(step, loss, 0.1, 1e-3, 4, 40, 2, 0.5, (2 * step, 2 * step + 1)), len(losses))


def flags(file: Path) -> list[tuple[int, float, bool]]:
    return [(entry["step"], entry["loss"], entry.get("spike", False)) for entry in read_metrics(file)]


def test_log_and_line_name_the_spike_and_a_resumed_log_is_the_same(tmp_path: Path) -> None:
    losses = [*QUIET, 4.0, *QUIET, 7.5]
    whole, shown = tmp_path / "whole.jsonl", io.StringIO()
    report_on(whole, losses, 0, shown)
    assert [step for step, _, spike in flags(whole) if spike] == [31, 62]
    assert "step 31: the loss jumps to 4.0000, from 1.0100 on average; rows 62, 63" in shown.getvalue()
    lines = whole.read_text(encoding="utf-8").splitlines()
    assert all("row_numbers" not in json.loads(line) for line in lines)
    for stopped in (1, 12, 30, 31, 45, 61):
        file = tmp_path / f"at-{stopped}.jsonl"
        report_on(file, losses[: stopped + 5], 0, io.StringIO())
        log = MetricsLog(file)
        log.cut(len("".join(f"{line}\n" for line in file.read_text().splitlines()[:stopped]).encode()))
        report_on(file, losses, stopped, io.StringIO())
        assert flags(file) == flags(whole)


def test_the_picture_marks_it(tmp_path: Path) -> None:
    entry = {"kind": "train", "lr": 1e-3, "grad_norm": 1.0}
    plain = [{**entry, "step": step, "loss": 1.0} for step in range(1, 9)]
    picture.draw(plain, tmp_path / "plain.png", "x")
    picture.draw([*plain[:-1], {**plain[-1], "spike": True}], tmp_path / "spike.png", "x")
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "spike.png").read_bytes()
