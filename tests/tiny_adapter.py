"""A small adapter made of fixed numbers, and ways to make folders that say something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroada_cli import files
from neuroada_cli.adapter.folder import Adapter, write_adapter
from neuroada_cli.selection.file import Selection

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MODULES = ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj")
OUTPUTS, INPUTS, K = 4, 8, 2


def tiny_selection(seed: int = 0) -> Selection:
    """Two layers of [4, 8] with two connections per neuron."""
    chance = np.random.default_rng(seed)
    rows = [[sorted(chance.permutation(INPUTS)[:K]) for _ in range(OUTPUTS)] for _ in MODULES]
    return Selection(
        {
            name: torch.tensor(index_OK, dtype=torch.int32)
            for name, index_OK in zip(MODULES, rows, strict=True)
        },
        K,
        "magnitude",
        {"format": 1, "config": {"hidden_size": INPUTS}, "layout": "0" * 64},
        {MODULES[0]: ["lm_head"]},
    )


def tiny_adapter(seed: int = 0) -> Adapter:
    """An adapter with a head that was trained whole."""
    chance = np.random.default_rng(seed + 1)

    def values(*shape: int) -> torch.Tensor:
        return torch.from_numpy(chance.normal(size=shape).astype(np.float32))

    return Adapter(
        tiny_selection(seed),
        {name: values(OUTPUTS, K) for name in MODULES},
        {"score.weight": values(2, INPUTS), "score.bias": values(2)},
        "base/model",
        None,
        "sequence-classification",
        {"dtype": "fp32", "num_labels": 2, "labels": ["no", "yes"], "task": "rte"},
    )


def write(folder: Path, seed: int = 0, overwrite: bool = False) -> Path:
    with files.atomic_folder(folder, overwrite=overwrite) as temporary:
        write_adapter(temporary, tiny_adapter(seed), recipe_yaml="name: tiny\n")
    return folder


def reseal(folder: Path) -> None:
    """Make the manifest agree with whatever the files hold now, as someone who means harm would."""
    manifest = json.loads((folder / files.MANIFEST).read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / files.MANIFEST).write_text(json.dumps(manifest))


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    reseal(folder)


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors, metadata = files.read_tensors(folder / TENSORS)
    change(tensors)
    files.write_tensors(folder / TENSORS, tensors, metadata)
    reseal(folder)
