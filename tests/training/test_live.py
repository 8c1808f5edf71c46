"""What a run says while it runs: a resumed one shows the numbers of one that was never stopped."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from neuroada_cli.loop.step import StepStats
from neuroada_cli.training.live import LiveReport
from neuroada_cli.training.log import MetricsLog

LOSSES = [5.0, 4.0, 4.5, 3.0, 3.5, 2.0, 2.5, 1.0]


def shown(log: MetricsLog, first: int, last: int) -> list[str]:
    """The losses that a run says at steps first … last."""
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    with LiveReport(log, torch.device("cpu"), console) as report:
        for step in range(first, last + 1):
            report.step(StepStats(step, LOSSES[step - 1], 1.0, 1e-3, 4, 8, 2, 0.01), len(LOSSES))
    return re.findall(r"loss ([\d.]+)", screen.getvalue())


@pytest.mark.parametrize("stopped", range(1, len(LOSSES)))
def test_the_shown_loss_does_not_begin_anew(stopped: int, tmp_path: Path) -> None:
    whole = shown(MetricsLog(tmp_path / "whole.jsonl"), 1, len(LOSSES))
    assert len(whole) == len(LOSSES)
    log = MetricsLog(tmp_path / "resumed.jsonl")
    assert shown(log, 1, stopped) + shown(log, stopped + 1, len(LOSSES)) == whole
