"""training.png: the course of a run from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuroada_cli.show import figures

LOSS, HELD_OUT, LR, NORM = "#4477aa", "#ee6677", "#228833", "#aa3377"  # told apart by the colour-blind, too


def draw(entries: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Loss with validation loss (and metric) above, learning rate and gradient norm below.

    entries  of metrics.jsonl; without a training step nothing is drawn
    Raises ResourceError when the file cannot be written.
    """
    steps = [entry for entry in entries if entry["kind"] == "train"]
    evaluations = [entry for entry in entries if entry["kind"] == "eval"]
    if not steps:
        return
    figure = figures.new_figure(8, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    at = [entry["step"] for entry in steps]
    losses = [entry["loss"] for entry in steps]
    above.plot(at, losses, color=LOSS, alpha=0.3, linewidth=1)
    above.plot(at, _smooth(losses), color=LOSS, linewidth=1.8, label="training loss")
    _draw_spikes(above, [entry for entry in steps if entry.get("spike")])
    _draw_evaluations(above, evaluations)
    above.set_ylabel("loss per target")
    above.set_title(title, loc="left", fontsize=11)
    below.plot(at, [entry["lr"] for entry in steps], color=LR, linewidth=1.5)
    below.set_ylabel("learning rate", color=LR)
    below.set_xlabel("optimizer step")
    norms = below.twinx()
    norms.plot(at, [entry["grad_norm"] for entry in steps], color=NORM, linewidth=1, alpha=0.7)
    norms.set_ylabel("gradient norm", color=NORM)
    for axis in (above, below):
        axis.grid(alpha=0.25)
        axis.spines["top"].set_visible(False)
    figures.save(figure, path)


def _draw_spikes(axis: Any, spikes: Sequence[dict[str, Any]]) -> None:
    if spikes:
        at, losses = [entry["step"] for entry in spikes], [entry["loss"] for entry in spikes]
        axis.plot(at, losses, color="black", marker="v", markersize=6, linestyle="none", label="loss spike")


def _draw_evaluations(axis: Any, evaluations: Sequence[dict[str, Any]]) -> None:
    if evaluations:
        at = [entry["step"] for entry in evaluations]
        values = [entry["loss"] for entry in evaluations]
        axis.plot(at, values, color=HELD_OUT, marker="o", markersize=4, label="validation loss")
        if evaluations[0]["metric"] is not None:
            metric = axis.twinx()
            scores = [entry["metric"] for entry in evaluations]
            metric.plot(at, scores, color=NORM, marker="s", markersize=4, linestyle="--")
            metric.set_ylabel(evaluations[0]["metric_name"], color=NORM)
        best = [entry["step"] for entry in evaluations if entry["best"]]
        if best:
            axis.axvline(best[-1], color="black", alpha=0.3, linestyle=":", label=f"best (step {best[-1]})")
    axis.legend(frameon=False)


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over a fiftieth of the run, over what there is at its start."""
    width = max(1, len(values) // 50)
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]
