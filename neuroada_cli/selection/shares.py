"""How the neurons of a selection share the inputs: how many of these are chosen at all, and by how many.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neuroada_cli.selection.file import Selection
from neuroada_cli.show import figures
from neuroada_cli.show.blocks import heat_map, kinds_of, rows_of

POINTS = 100  # of a curve


@dataclass(frozen=True)
class InputShares:
    """Of one layer. used: the share of its inputs that at least one neuron chose; most: the share of its
    neurons that chose the input which most of them did; sorted_I: how many chose each input, descending.
    """

    used: float
    most: float
    sorted_I: Tensor


def shares_of(index_OK: Tensor, inputs: int) -> InputShares:
    """index_OK int [O, K]; entries below 0 are no connection."""
    count_I = torch.bincount(index_OK[index_OK >= 0].long(), minlength=inputs)
    sorted_I = count_I.sort(descending=True).values
    return InputShares(
        float((count_I > 0).double().mean()), float(sorted_I[0]) / max(1, len(index_OK)), sorted_I
    )


def draw(selection: Selection, inputs: Mapping[str, int], path: Path) -> None:
    """Blocks by kinds of layer: which share of the inputs is used, and how crowded the most chosen one is;
    beside them, for each kind, how much of the connections the most chosen inputs take.

    inputs  module name -> I.  Raises ResourceError for the disk.
    """
    found = {name: shares_of(index_OK, inputs[name]) for name, index_OK in selection.indices.items()}
    figure = figures.new_figure(13.0, max(4.2, 2.2 + 0.16 * len(rows_of(list(found)))))
    used, most, curves = figure.subplots(1, 3)
    maps = (
        (used, {name: each.used for name, each in found.items()}, "share of the inputs that are chosen"),
        (most, {name: each.most for name, each in found.items()}, "neurons on the most chosen input"),
    )
    for axis, values, title in maps:
        figure.colorbar(heat_map(axis, values), ax=axis, format="{x:.0%}")
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("block")
    for kind, names in _by_kind(list(found)).items():
        curves.plot(*_curve([found[name].sorted_I for name in names]), label=kind, linewidth=1.4)
    curves.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1, label="all alike")
    curves.set_xlabel("share of the inputs, the most chosen first")
    curves.set_ylabel("share of the connections")
    curves.set_title("how neurons share the inputs", fontsize=10)
    curves.legend(fontsize=8, loc="lower right")
    figure.suptitle(f"K={selection.k} by {selection.criterion}", fontsize=11)
    figures.save(figure, path)


def _by_kind(modules: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for module, kind in kinds_of(modules).items():
        found.setdefault(kind, []).append(module)
    return found


def _curve(layers: list[Tensor]) -> tuple[list[float], list[float]]:
    """(shares of inputs, shares of connections), the mean over layers."""
    at = torch.linspace(0, 1, POINTS + 1, dtype=torch.float64)
    total = torch.zeros_like(at)
    for sorted_I in layers:
        upto_I = torch.cat([torch.zeros(1, dtype=torch.float64), sorted_I.double().cumsum(0)])
        place = at * len(sorted_I)
        below = place.floor().long().clamp(max=len(sorted_I) - 1)
        value = upto_I[below] + (place - below) * (upto_I[below + 1] - upto_I[below])
        total += value / max(1.0, float(upto_I[-1]))
    return at.tolist(), (total / len(layers)).tolist()
