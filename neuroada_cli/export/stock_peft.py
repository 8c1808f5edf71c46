"""An adapter as SUPERTUNING or SHIRA of stock PEFT, which then needs nothing of ours.

Both hold one list of entries per layer, of a length that follows from one number for all layers: SUPERTUNING
int(O x I x (1 - sparsity)) flat positions, one at least, SHIRA r (O + I) pairs. What a layer has fewer is
filled up with further positions and zeros, which change nothing; a layer without any is left out. PEFT adds
the values in the weight's own data type: over fp32 weights the same sum, over 16 bits one rounding more than
ours.

O = output neurons, I = inputs, N = entries of a layer
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli import files, hub
from neuroada_cli.adapter.base_name import told
from neuroada_cli.adapter.config import PEFT_TASKS, modules_to_save
from neuroada_cli.adapter.folder import METADATA, PREFIX, TENSORS, Adapter
from neuroada_cli.delta.index import size
from neuroada_cli.delta.layout import is_conv1d
from neuroada_cli.delta.targets import is_plain, targets_of
from neuroada_cli.errors import ModelError
from neuroada_cli.files.folders import ADAPTER_CONFIG

PEFT_VERSION = "0.21.2"  # whose files these are


@dataclass(frozen=True)
class Entries:
    """What trained in one layer: flat positions int64 [N], ascending, and fp32 values [N]."""

    shape: tuple[int, int]
    position_N: Tensor
    value_N: Tensor

    def padded(self, count: int) -> tuple[Tensor, Tensor]:
        """So many entries, the missing ones at the first free positions and 0."""
        missing = count - len(self.position_N)
        taken = torch.zeros(min(math.prod(self.shape), count), dtype=torch.bool)
        taken[self.position_N[self.position_N < len(taken)]] = True
        free_N = (~taken).nonzero()[:missing, 0]
        return torch.cat([self.position_N, free_N]), torch.cat([self.value_N, torch.zeros(missing)])


@dataclass(frozen=True)
class Stored:
    """entries that the file holds, of them padding; peft_type of stock PEFT."""

    peft_type: str
    entries: int
    padding: int


def write(folder: Path, adapter: Adapter, base: hub.Base, kind: str) -> Stored:
    """Write an adapter of stock PEFT into an existing folder. kind: "supertuning" or "shira".

    Raises ModelError for a layer that PEFT's method cannot hold, and for an adapter of no connection at all.
    """
    trained = [name for name, index_OK in adapter.selection.indices.items() if size(index_OK)]
    if not trained:
        raise ModelError(
            "holds no connection, and stock PEFT takes no adapter without a layer", fix="merge the adapter"
        )
    layers = {name: entries_of(adapter, base, name) for name in trained}
    saved = modules_to_save(adapter.whole)
    _refuse_both(saved or (), layers)
    whole = {**_rest_of(saved or (), adapter, base), **adapter.whole}
    tensors = {PREFIX + name: tensor for name, tensor in whole.items()}
    name, revision = told(adapter.base, adapter.revision)
    config = {
        "task_type": PEFT_TASKS.get(adapter.task),
        "base_model_name_or_path": name,
        "revision": revision,
        "target_modules": sorted(layers),
        "modules_to_save": saved,
        "inference_mode": True,
        "auto_mapping": None,
        "peft_version": PEFT_VERSION,
        "init_weights": True,
    }
    make = _supertuning if kind == "supertuning" else _shira
    own, settings = make(layers)
    files.write_tensors(folder / TENSORS, tensors | own, METADATA)
    files.write_json(folder / ADAPTER_CONFIG, config | settings)
    held = sum(tensor.numel() for name, tensor in own.items() if tensor.is_floating_point())
    chosen = sum(size(index_OK) for index_OK in adapter.selection.indices.values())
    return Stored(str(settings["peft_type"]), held, held - chosen)


def _refuse_both(saved: Sequence[str], layers: Collection[str]) -> None:
    """Raises ModelError for a layer whose bias trained beside its connections."""
    both = next((name for name in saved if name in layers), None)
    if both is not None:
        raise ModelError(
            f"{both} has connections and a bias that trained, and stock PEFT keeps a layer sparse or whole",
            fix="merge the adapter",
        )


def _rest_of(saved: Sequence[str], adapter: Adapter, base: hub.Base) -> dict[str, Tensor]:
    """The base's own parameters of modules that PEFT saves as a whole, of which only some trained.

    Raises ModelError for one that the base's files do not hold as it is.
    """
    found = {}
    for name, _ in base.graph.named_parameters():
        if name not in adapter.whole and any(name.startswith(f"{module}.") for module in saved):
            stored = base.places.own_name(name)
            if stored is None or not base.places.fits(name):
                raise ModelError(f"has no {name}, which PEFT saves with what trained", str(base.folder))
            found[name] = base.weights.tensor(stored).clone()
    return found


def entries_of(adapter: Adapter, base: hub.Base, name: str) -> Entries:
    """Raises ModelError for a layer that is no plain nn.Linear, or whose weight others use too."""
    owner = targets_of(base.graph)[name].owner
    if is_conv1d(owner) or not is_plain(owner) or type(owner).__name__ == "Parameter":
        raise ModelError(
            f"{name} is a {type(owner).__name__}, and stock PEFT's sparse methods take plain linear layers",
            str(base.folder),
            "merge the adapter, or use our plug-in: import neuroada_cli.peft_plugin",
        )
    if adapter.selection.tied.get(name):
        other = adapter.selection.tied[name][0]
        raise ModelError(
            f"{name} shares its weight with {other}, which stock PEFT would leave as it was",
            str(base.folder),
            "merge the adapter",
        )
    index_OK, delta_OK = adapter.selection.indices[name], adapter.deltas[name]
    layout, real_OK = targets_of(base.graph)[name].layout, index_OK >= 0
    return Entries(layout.shape, layout.flat(index_OK)[real_OK], delta_OK[real_OK])


def _supertuning(layers: Mapping[str, Entries]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One sparsity that leaves every layer at least its own number of entries."""
    share = max((len(e.position_N) + 0.5) / math.prod(e.shape) for e in layers.values())
    sparsity = max(0.0, 1 - share)
    tensors = {}
    for name, entries in layers.items():
        numbers = math.prod(entries.shape)
        position_N, value_N = entries.padded(int(numbers * (1 - sparsity)))
        tensors[f"{PREFIX}{name}.supertuning_indices"] = position_N.to(torch.int32)
        tensors[f"{PREFIX}{name}.supertuning_values"] = value_N
    settings = {
        "peft_type": "SUPERTUNING", "sparsity": sparsity, "select_top": True, "r": None, "lora_alpha": None,
        "lora_dropout": 0.0, "save_precomputed_indices": True,
    }  # fmt: skip
    return tensors, settings


def _shira(layers: Mapping[str, Entries]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One r such that r (O + I) is at least every layer's own number of entries.

    Raises ModelError where that is more than a layer has weights.
    """
    rank = max(1, *(math.ceil(len(e.position_N) / sum(e.shape)) for e in layers.values()))
    tensors = {}
    for name, entries in layers.items():
        outputs, inputs = entries.shape
        count = rank * (outputs + inputs)
        if count > outputs * inputs:
            raise ModelError(
                f"SHIRA would need {count:,} entries of {name}, which has {outputs * inputs:,} weights",
                fix="export to peft-supertuning",
            )
        position_N, value_N = entries.padded(count)
        pairs_2N = torch.stack([position_N // inputs, position_N % inputs])
        tensors[f"{PREFIX}{name}.shira_indices"] = pairs_2N.to(torch.int32)
        tensors[f"{PREFIX}{name}.shira_weight"] = value_N
    settings = {
        "peft_type": "SHIRA", "r": rank, "mask_type": "random", "random_seed": 0, "fan_in_fan_out": False,
    }  # fmt: skip
    return tensors, settings
