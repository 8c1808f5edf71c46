"""Adapter folders as `neuroada train` leaves them, with random deltas, on a model folder of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_choice import selected

from neuroada_cli import files, hub
from neuroada_cli.adapter.folder import Adapter, write_adapter


def adapter_of(
    base: Path,
    out: Path,
    task: hub.ModelTask = "causal-lm",
    ragged: bool = False,
    k: int = 2,
    seed: int = 3,
    targets: tuple[str, ...] = ("all-linear",),
    criterion: str = "magnitude",
    **settings: Any,
) -> Path:
    """ragged: every third row has one connection fewer. A classifier (32 wide) gets a head of 2 labels."""
    chance = torch.Generator().manual_seed(seed)
    labels = 2 if task != "causal-lm" else None
    selection = selected(base, targets, k, criterion, seed=seed, task=task, num_labels=labels)
    deltas = {n: 0.3 * torch.randn(i.shape, generator=chance) for n, i in selection.indices.items()}
    if ragged:
        for name, index_OK in selection.indices.items():
            index_OK[::3, k - 1], deltas[name][::3, k - 1] = -1, 0
    about: dict[str, Any] = {"dtype": "fp32", "method": "neuroada"} | settings
    whole = {}
    if labels:
        about |= {"num_labels": 2, "labels": ["no", "yes"], "pad_token_id": 0}
        whole = {"classifier.weight": torch.randn(2, 32, generator=chance), "classifier.bias": torch.ones(2)}
    with files.atomic_folder(out) as folder:
        write_adapter(folder, Adapter(selection, deltas, whole, str(base), None, task, about))
    return out
