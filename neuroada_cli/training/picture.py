"""training.png: the course of a run from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuroada_cli.show import figures

# told apart by the colour-blind, too, and on light and dark pages
LOSS, HELD_OUT, LR, NORM, METRIC = "#4477aa", "#ee6677", "#228833", "#aa3377", "#aa3377"
SPIKE, BEST = "#cc8800", "#888888"
LOGARITHMIC = 20  # largest loss over smallest, from which on a straight axis would be flat


def draw(entries: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Loss with validation loss (and metric) above, learning rate and gradient norm below.

    entries  of metrics.jsonl; without a training step nothing is drawn
    Raises ResourceError when the file cannot be written.
    """
    steps = [entry for entry in entries if entry["kind"] == "train"]
    evaluations = [entry for entry in entries if entry["kind"] == "eval"]
    if not steps:
        return
    figure = figures.new_figure(
        8, 6, {"left": 0.11, "right": 0.9, "bottom": 0.09, "top": 0.94, "hspace": 0.08}
    )
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    _draw_losses(above, steps, evaluations)
    above.set_title(title, loc="left", fontsize=11)
    _draw_rates(below, steps)
    figures.save(figure, path)


def courses(entries: Sequence[dict[str, Any]]) -> list[tuple[Any, str]]:
    """The same as two figures with their captions, narrow enough for a phone."""
    steps = [entry for entry in entries if entry["kind"] == "train"]
    evaluations = [entry for entry in entries if entry["kind"] == "eval"]
    if not steps:
        return []
    sides = {"left": 0.13, "right": 0.87, "top": 0.97}
    losses = figures.new_figure(5.8, 3.5, sides | {"bottom": 0.14})
    rates = figures.new_figure(5.8, 2.5, sides | {"bottom": 0.2})
    axis = losses.subplots()
    _draw_losses(axis, steps, evaluations)
    axis.set_xlabel("optimizer step")
    _draw_rates(rates.subplots(), steps)
    width = _width(steps)
    smoothed = f"; the thick line is the mean of the last {width} steps" if width > 1 else ""
    return [
        (losses, f"loss: of every step, thin{smoothed}" if width > 1 else "loss of every step"),
        (rates, "learning rate and gradient norm (before clipping) of every step"),
    ]


def _draw_losses(axis: Any, steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> None:
    at, losses = [entry["step"] for entry in steps], [entry["loss"] for entry in steps]
    smoothed = _smooth(losses)
    axis.plot(at, losses, color=LOSS, alpha=0.35, linewidth=1)
    width = _width(steps)
    label = f"training loss, mean of {width} steps" if width > 1 else "training loss"
    axis.plot(at, smoothed, color=LOSS, linewidth=1.8, label=label)
    _draw_spikes(axis, [entry for entry in steps if entry.get("spike")])
    _draw_evaluations(axis, evaluations)
    axis.set_ylabel("loss per target")
    if min(losses) > 0 and max(losses) > LOGARITHMIC * min(losses):
        axis.set_yscale("log")
        axis.set_ylabel("loss per target (log)")
    _tidy(axis)


def _draw_rates(axis: Any, steps: Sequence[dict[str, Any]]) -> None:
    at = [entry["step"] for entry in steps]
    axis.plot(at, [entry["lr"] for entry in steps], color=LR, linewidth=1.5)
    axis.set_ylabel("learning rate", color=LR)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("optimizer step")
    norms = axis.twinx()
    norms.plot(at, [entry["grad_norm"] for entry in steps], color=NORM, linewidth=1.2, alpha=0.9)
    norms.set_ylabel("gradient norm", color=NORM)
    norms.set_ylim(bottom=0)
    norms.spines["top"].set_visible(False)
    _tidy(axis)


def _tidy(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no half step
    axis.grid(alpha=0.25)
    axis.spines["top"].set_visible(False)


def _draw_spikes(axis: Any, spikes: Sequence[dict[str, Any]]) -> None:
    if spikes:
        at, losses = [entry["step"] for entry in spikes], [entry["loss"] for entry in spikes]
        axis.plot(at, losses, color=SPIKE, marker="v", markersize=6, linestyle="none", label="loss spike")


def _draw_evaluations(axis: Any, evaluations: Sequence[dict[str, Any]]) -> None:
    if evaluations:
        at = [entry["step"] for entry in evaluations]
        values = [entry["loss"] for entry in evaluations]
        axis.plot(at, values, color=HELD_OUT, marker="o", markersize=4, label="validation loss")
        if evaluations[0]["metric"] is not None:
            metric = axis.twinx()
            scores = [entry["metric"] for entry in evaluations]
            name = evaluations[0]["metric_name"]
            metric.plot(at, scores, color=METRIC, marker="s", markersize=4, linestyle="--", label=name)
            metric.set_ylabel(name, color=METRIC)
            metric.spines["top"].set_visible(False)
            axis.plot([], [], color=METRIC, marker="s", markersize=4, linestyle="--", label=name)
        best = [entry["step"] for entry in evaluations if entry["best"]]
        if best:
            axis.axvline(best[-1], color=BEST, alpha=0.7, linestyle=":", label=f"best (step {best[-1]})")
    axis.legend(frameon=False, fontsize=9)


def _width(steps: Sequence[object]) -> int:
    """Steps of the running mean: a fiftieth of the run."""
    return max(1, len(steps) // 50)


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean, at the start over what there is."""
    width = _width(values)
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]
