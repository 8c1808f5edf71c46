"""How much two selections have in common, layer by layer: as numbers, a table and a picture.

    overlap = |A and B| / |A|        two random selections of K of I inputs share K / I

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from neuroada_cli.delta.index import size
from neuroada_cli.delta.names import block_number, split_at_block
from neuroada_cli.errors import ModelError
from neuroada_cli.selection.file import Selection
from neuroada_cli.show import figures


@dataclass(frozen=True)
class Overlap:
    """Of one layer: the share of A's connections that B has, too, and what B would share by chance."""

    module: str
    share: float
    chance: float


def shared(index_OA: Tensor, index_OB: Tensor) -> int:
    """How many (neuron, input) pairs two selections of the same layer have in common."""
    width = int(max(index_OA.max(), index_OB.max())) + 1
    rows_O1 = torch.arange(len(index_OA))[:, None] * width
    one_N, other_N = ((index.long() + rows_O1)[index >= 0] for index in (index_OA, index_OB))
    return int(torch.isin(one_N, other_N).sum())


def overlaps(one: Selection, other: Selection, inputs: Mapping[str, int], where: str) -> list[Overlap]:
    """One entry per layer of `one`. inputs: module name -> I. Raises ModelError when the layers differ."""
    if odd := sorted(one.indices.keys() ^ other.indices.keys()):
        raise ModelError(f"{odd[0]} is in only one of the two selections", where)
    return [
        Overlap(
            name,
            shared(index_OA, other.indices[name]) / max(1, size(index_OA)),
            size(other.indices[name]) / (len(index_OA) * inputs[name]),
        )
        for name, index_OA in one.indices.items()
    ]


def table(first: str, compared: Mapping[str, Sequence[Overlap]], per_layer: bool = False) -> Table:
    """A row per kind of layer, the mean over its blocks; or a row per layer."""
    grid = Table(
        title=f"Of the connections chosen by {Path(first).name}, also chosen by …", title_justify="left",
        box=SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    grid.add_column("layer", no_wrap=True)
    for heading in (*(Path(name).name for name in compared), "chance"):
        grid.add_column(heading, justify="right", no_wrap=True)
    everything = [entry for entries in compared.values() for entry in entries]
    kinds = kinds_of([entry.module for entry in everything])
    row_of = {module: module if per_layer else kind for module, kind in kinds.items()}
    for wanted in dict.fromkeys(row_of[entry.module] for entry in everything):
        groups = [[e.share for e in entries if row_of[e.module] == wanted] for entries in compared.values()]
        groups.append([e.chance for e in everything if row_of[e.module] == wanted])
        grid.add_row(wanted, *(f"{sum(group) / len(group):.1%}" for group in groups))
    return grid


def kinds_of(modules: Sequence[str]) -> dict[str, str]:
    """Module -> what it has in common with those of other blocks: its name behind the block's number.

    Only the last part where that tells it from every other kind (`q_proj`, but `attention.output.dense`).
    """
    tails = {module: split_at_block(module)[1] for module in modules}
    lasts = [tail.rpartition(".")[2] for tail in {*tails.values()}]
    short = {last for last in lasts if lasts.count(last) == 1}
    return {m: last if (last := tail.rpartition(".")[2]) in short else tail for m, tail in tails.items()}


def draw(first: str, compared: Mapping[str, Sequence[Overlap]], path: Path) -> None:
    """A heat map of blocks x kinds of layer per compared selection. Raises ResourceError."""
    kind_of = kinds_of([entry.module for entries in compared.values() for entry in entries])
    kinds = list(dict.fromkeys(kind_of.values()))
    numbers = {block_number(module) for module in kind_of}
    rows = [*sorted(n for n in numbers if n is not None), *([None] if None in numbers else [])]
    figure = figures.new_figure(1.8 + 3.2 * len(compared), 2.2 + 0.16 * len(rows))
    panels = figure.subplots(1, len(compared), squeeze=False, sharey=True)[0]
    for axis, (name, entries) in zip(panels, compared.items(), strict=True):
        grid = torch.full((len(rows), len(kinds)), float("nan"))
        for entry in entries:
            grid[rows.index(block_number(entry.module)), kinds.index(kind_of[entry.module])] = entry.share
        shown = axis.imshow(grid.numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower")
        axis.set_xticks(range(len(kinds)), kinds, rotation=60, ha="right", fontsize=8)
        axis.set_title(f"{Path(name).name} in {Path(first).name}", fontsize=10)
    step = max(1, len(rows) // 10)
    panels[0].set_yticks(
        range(0, len(rows), step), ["outside" if n is None else str(n) for n in rows[::step]], fontsize=8
    )
    panels[0].set_ylabel("block")
    figure.colorbar(shown, ax=panels, label="share in common")
    figures.save(figure, path)
