"""A loss that never moves is said once, before a stop or after it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from neuroada_cli.loop.standstill import Standstill
from neuroada_cli.loop.step import StepStats
from neuroada_cli.loop.validate import Evaluation
from neuroada_cli.training.live import STANDING, LiveReport
from neuroada_cli.training.log import MetricsLog

MOST = STANDING["train"]


@pytest.mark.parametrize(
    ("losses", "at"),
    [
        ([1.5] * 9, []),
        ([1.5] * 30, [9]),
        ([*[2.0] * 9, 1.5, *[2.0] * 10], [19]),
        ([*[2.0] * 10, *[3.0] * 10], [9]),  # once is enough
        ([1.0 + step * 1e-15 for step in range(30)], []),
        ([float("nan")] * 30, []),
    ],
)
def test_ten_that_are_one_number(losses: list[float], at: list[int]) -> None:
    watch = Standstill(10)
    assert [number for number, loss in enumerate(losses) if watch.stands(loss)] == at


def said(log: MetricsLog, first: int, last: int) -> list[str]:
    screen = io.StringIO()
    with LiveReport(log, torch.device("cpu"), Console(file=screen, width=200)) as report:
        for step in range(first, last + 1):
            report.step(StepStats(step, 0.6931472, 1.0, 1e-3, 4, 8, 2, 0.01), 2 * MOST)
            if step % 4 == 0:
                report.evaluation(step, Evaluation(0.5, 4), False)
    return [line for line in screen.getvalue().splitlines() if "does not change it" in line]


@pytest.mark.parametrize("stopped", range(1, 2 * MOST))
def test_a_resumed_run_says_it_where_the_undisturbed_one_does(stopped: int, tmp_path: Path) -> None:
    whole = said(MetricsLog(tmp_path / "whole.jsonl"), 1, 2 * MOST)
    assert [line.split(";")[0] for line in whole] == [
        "step 8: the validation loss is exactly what it was before: what trains does not change it",
        f"step {MOST}: the loss has been 0.693147 for {MOST} steps: what trains does not change it",
    ]
    log = MetricsLog(tmp_path / "resumed.jsonl")
    assert said(log, 1, stopped) + said(log, stopped + 1, 2 * MOST) == whole
