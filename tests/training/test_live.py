"""What a run says while it runs: a resumed one shows the numbers of one that was never stopped."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from neuroada_cli.loop.step import StepStats
from neuroada_cli.loop.validate import Evaluation
from neuroada_cli.training.live import LiveReport
from neuroada_cli.training.log import MetricsLog

LOSSES = [5.0, 4.0, 4.5, 3.0, 3.5, 2.0, 2.5, 1.0]


def shown(log: MetricsLog, first: int, last: int) -> list[str]:
    """The smoothed losses that a run says at steps first … last."""
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    with LiveReport(log, torch.device("cpu"), console) as report:
        for step in range(first, last + 1):
            report.step(StepStats(step, LOSSES[step - 1], 1.0, 1e-3, 4, 8, 2, 0.01), len(LOSSES))
    return re.findall(r"smoothed ([\d.]+)", screen.getvalue())


@pytest.mark.parametrize("stopped", range(1, len(LOSSES)))
def test_the_smoothed_loss_does_not_begin_anew(stopped: int, tmp_path: Path) -> None:
    whole = shown(MetricsLog(tmp_path / "whole.jsonl"), 1, len(LOSSES))
    assert len(whole) == len(LOSSES)
    log = MetricsLog(tmp_path / "resumed.jsonl")
    assert shown(log, 1, stopped) + shown(log, stopped + 1, len(LOSSES)) == whole


def test_programs_get_every_entry_of_the_log_and_nothing_else(tmp_path: Path) -> None:
    log, screen, stream = MetricsLog(tmp_path / "log.jsonl"), io.StringIO(), io.StringIO()
    with LiveReport(log, torch.device("cpu"), Console(file=screen), stream) as report:
        report.step(StepStats(1, 2.0, 1.0, 1e-3, 4, 8, 2, 0.01), 1)
        report.evaluation(1, Evaluation(1.5, 4), True)
    assert stream.getvalue() == log.path.read_text(encoding="utf-8")
    assert [json.loads(line)["kind"] for line in stream.getvalue().splitlines()] == ["train", "eval"]
    assert screen.getvalue() == ""


def test_a_terminal_of_80_columns_shows_every_figure_and_the_time_left(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    with LiveReport(MetricsLog(tmp_path / "log.jsonl"), torch.device("cpu"), console) as report:
        for step in (11_998, 11_999):
            report.step(StepStats(step, 12.5, 123.456, 1e-3, 4, 8_000, 2, 0.01), 120_000)
        report._bar.refresh()
    last = screen.getvalue().replace("\r", "\n").splitlines()
    assert any("step 11999 of 120000" in line and re.search(r"[\d:]+ left", line) for line in last)
    figures = next(line for line in reversed(last) if "smoothed" in line)
    assert re.search(r"loss 12\.5000  smoothed 12\.5000  lr 1\.0e-03  grad 123  [\d,]+ tokens/s", figures)
    assert "…" not in figures


def test_a_log_file_has_whole_lines(tmp_path: Path) -> None:
    screen = io.StringIO()
    with LiveReport(MetricsLog(tmp_path / "l.jsonl"), torch.device("cpu"), Console(file=screen)) as report:
        report.step(StepStats(1, 2.0, 1.0, 1e-3, 4, 8, 2, 0.01), 3)
    (line,) = screen.getvalue().splitlines()
    assert line.startswith("step 1/3  loss 2.0000  smoothed 2.0000  lr 1.0e-03  grad 1  ")
    assert line.endswith(" left")
