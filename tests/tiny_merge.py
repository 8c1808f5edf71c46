"""A tiny base and an adapter of random deltas on it, as a run leaves them: what tests of merging share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tiny_choice import selected
from torch import Tensor

from neuroada_cli import files, hub
from neuroada_cli.adapter.folder import Adapter, write_adapter
from neuroada_cli.selection.file import Selection


def random_deltas(selection: Selection, size: float = 0.5) -> dict[str, Tensor]:
    """Zero at place holders, as training leaves them."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: size * torch.randn(index_OK.shape, generator=generator) * (index_OK >= 0)
        for name, index_OK in selection.indices.items()
    }


def write_tiny_adapter(
    folder: Path,
    base: Path,
    selection: Selection | None = None,
    whole: Mapping[str, Tensor] | None = None,
    task: hub.ModelTask = "causal-lm",
    **settings: object,
) -> Adapter:
    """Without a selection: of all linear layers."""
    if selection is None:
        labels = settings.get("num_labels")
        selection = selected(base, k=2, task=task, num_labels=labels if isinstance(labels, int) else None)
    adapter = Adapter(
        selection, random_deltas(selection), dict(whole or {}), str(base), None, task,
        {"dtype": "fp32"} | settings,
    )  # fmt: skip
    with files.atomic_folder(folder, overwrite=True) as temporary:
        write_adapter(temporary, adapter)
    return adapter
