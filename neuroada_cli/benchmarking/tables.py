"""The result of a bench: a table to read, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from neuroada_cli.benchmarking.rows import BenchRow
from neuroada_cli.show import figures
from neuroada_cli.show.numbers import share, size


def table(rows: Sequence[BenchRow], title: str, parameters: int) -> Table:
    """One line per method, in 80 columns. Weights are left to the caption: they are the same for all."""
    unit, name, digits = (1e9, "GB", 2) if max(row.peak_bytes for row in rows) >= 1e10 else (1e6, "MB", 1)
    weights = f"{rows[0].weights_bytes / unit:,.{digits}f} {name}"
    headings = ("/ floor", "tokens/s", "trains", f"peak {name}", "state", "activ.", "pred.")
    shown = _plain_table(title, headings)
    shown.caption = f"peak = weights ({weights}) + state + activations"
    for row in rows:
        sizes = (row.peak_bytes, row.state_bytes, row.activation_bytes)
        shown.add_row(
            row.label,
            _ratio(row),
            f"{row.tokens_per_s:,.0f}",
            share(row.trainable, parameters),
            *(f"{nbytes / unit:,.{digits}f}" for nbytes in sizes),
            _predicted(row),
            style=_style(row),
        )
    return shown


def budget_table(rows: Sequence[BenchRow], budget: int) -> Table:
    """The largest batch of each method within the budget, and its speed."""
    shown = _plain_table(f"Largest batch within {size(budget)}", ("rows", "samples/s", "of the floor's"))
    floor = rows[0].largest_batch_samples_per_s
    for row in rows:
        speed = row.largest_batch_samples_per_s
        if speed is None:
            shown.add_row(row.label, "none fits", style=_style(row))
            continue
        relative = f"{speed / floor:.2f}" if floor else "–"
        shown.add_row(row.label, f"{row.largest_batch:,}", f"{speed:,.2f}", relative, style=_style(row))
    return shown


def _plain_table(title: str, headings: Sequence[str]) -> Table:
    shown = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    shown.add_column("method", no_wrap=True)
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    return shown


def _style(row: BenchRow) -> str | None:
    return "bold" if row.method == "neuroada" else None


def _ratio(row: BenchRow) -> str:
    return "1" if row.method == "floor" else f"{row.ratio_to_floor:.3f}"


def _predicted(row: BenchRow) -> str:
    if row.predicted_bytes is None:
        return "–"
    off = round(100 * (row.predicted_bytes / row.peak_bytes - 1), 1)
    return f"{off:+.1f}%" if off else "0.0%"


def draw(rows: Sequence[BenchRow], title: str, path: Path) -> None:
    """Step time over the floor against peak memory, one labelled point per method, as PNG, SVG or PDF.

    Raises ResourceError when the file cannot be written.
    """
    figure = figures.new_figure(8, 5)
    axes = figure.add_subplot()
    for row, (dx, dy) in zip(rows, _offsets(rows), strict=True):
        ours, floor = row.method == "neuroada", row.method == "floor"
        colour = "#c0392b" if ours else "#7f8c8d" if floor else "#2c5f8a"
        place = (row.ratio_to_floor, row.peak_bytes / 1e9)
        axes.plot(*place, marker="D" if floor else "o", color=colour, markersize=9 if ours else 7)
        axes.annotate(
            row.label, place, xytext=(dx, dy), textcoords="offset points", color=colour, fontsize=10,
            fontweight="bold" if ours else "normal", ha="left" if dx > 0 else "right", va="center",
        )  # fmt: skip
    axes.axvline(1.0, color="#7f8c8d", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="step time over the floor (frozen model)", ylabel="peak memory of a step, GB", title=title
    )
    axes.margins(0.16)
    axes.set_ylim(0, 1.2e-9 * max(row.peak_bytes for row in rows))
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figures.save(figure, path)


def _offsets(rows: Sequence[BenchRow]) -> list[tuple[int, int]]:
    """Where each label goes: right of its point, moved up or down where two points lie close together."""
    widest = max(row.ratio_to_floor for row in rows) - min(row.ratio_to_floor for row in rows) or 1.0
    highest = max(row.peak_bytes for row in rows)
    placed: list[tuple[float, float]] = []
    offsets = []
    for row in rows:
        x, y = (row.ratio_to_floor / widest, row.peak_bytes / highest)
        near = sum(abs(x - other_x) < 0.2 and abs(y - other_y) < 0.05 for other_x, other_y in placed)
        placed.append((x, y))
        offsets.append((9, (0, 12, -12, 22, -22)[near % 5]))
    return offsets
