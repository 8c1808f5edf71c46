"""Layers of a model in a picture: blocks from below to above, kinds of layers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuroada_cli.delta.names import block_number, split_at_block

MOST_TICKS = 12


def kinds_of(modules: Sequence[str]) -> dict[str, str]:
    """Module -> what it has in common with those of other blocks: its name behind the block's number.

    Only the last part where that tells it from every other kind (`q_proj`, but `attention.output.dense`).
    """
    tails = {module: split_at_block(module)[1] for module in modules}
    lasts = [tail.rpartition(".")[2] for tail in {*tails.values()}]
    short = {last for last in lasts if lasts.count(last) == 1}
    return {m: last if (last := tail.rpartition(".")[2]) in short else tail for m, tail in tails.items()}


def rows_of(modules: Sequence[str]) -> list[int | None]:
    """The block numbers, ascending; None last, for what lies outside of blocks."""
    numbers = {block_number(module) for module in modules}
    return [*sorted(n for n in numbers if n is not None), *([None] if None in numbers else [])]


def heat_map(axis: Any, values: Mapping[str, float], most: float | None = None) -> Any:
    """Draw module -> value, from 0 to `most` (the largest); what is not there stays empty. Returns the image
    for a colour bar.
    """
    kind_of = kinds_of(list(values))
    kinds, rows = list(dict.fromkeys(kind_of.values())), rows_of(list(values))
    grid = [[float("nan")] * len(kinds) for _ in rows]
    for module, value in values.items():
        grid[rows.index(block_number(module))][kinds.index(kind_of[module])] = value
    image = axis.imshow(
        grid, vmin=0, vmax=most or max(values.values()) or 1, cmap="viridis", aspect="auto", origin="lower"
    )
    axis.set_xticks(range(len(kinds)), kinds, rotation=45, ha="right", fontsize=8)
    step = -(-len(rows) // MOST_TICKS)
    names = ["outside" if row is None else str(row) for row in rows]
    axis.set_yticks(range(0, len(rows), step), names[::step], fontsize=8)
    return image
