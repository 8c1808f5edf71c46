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
from neuroada_cli.errors import ModelError
from neuroada_cli.selection.file import Selection
from neuroada_cli.show import figures
from neuroada_cli.show.blocks import heat_map, kinds_of, rows_of


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
        title=f"Chosen by {Path(first).name}, also by …",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
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


def draw(first: str, compared: Mapping[str, Sequence[Overlap]], path: Path) -> None:
    """A heat map of blocks x kinds of layer per compared selection. Raises ResourceError."""
    rows = rows_of([entry.module for entries in compared.values() for entry in entries])
    figure = figures.new_figure(1.8 + 3.2 * len(compared), 2.2 + 0.16 * len(rows))
    panels = figure.subplots(1, len(compared), squeeze=False, sharey=True)[0]
    most = max(entry.share for entries in compared.values() for entry in entries)
    for axis, (name, entries) in zip(panels, compared.items(), strict=True):
        image = heat_map(axis, {entry.module: entry.share for entry in entries}, most)
        axis.set_title(f"{Path(name).name} in {Path(first).name}", fontsize=10)
    panels[0].set_ylabel("block")
    figure.colorbar(image, ax=panels, label="share in common")
    figures.save(figure, path)
