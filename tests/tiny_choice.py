"""Selections of tiny bases, as `neuroada select` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neuroada_cli import hub
from neuroada_cli.selection.choice import Choice, target_layers
from neuroada_cli.selection.file import Selection
from neuroada_cli.selection.from_files import select_from_files
from neuroada_cli.selection.spread import Spread


def selected(
    folder: Path,
    targets: Sequence[str] = ("all-linear",),
    k: int = 1,
    criterion: str = "magnitude",
    seed: int = 0,
    quantization: str | None = None,
    task: hub.ModelTask = "causal-lm",
    num_labels: int | None = None,
    tile: int | None = None,
) -> Selection:
    """The K connections of every neuron of a folder's layers; with a tile, as many in whole tiles."""
    base = hub.open_base(folder, task, num_labels)
    choice = Choice(target_layers(base, targets), Spread(k, tile=tile), criterion, seed=seed)
    return select_from_files(base, choice, quantization=quantization)
