"""What a loaded model says of itself, for the adapters that are trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuroada_cli import hub
from neuroada_cli.delta.quantized import is_quantized
from neuroada_cli.errors import UserError

DTYPES = {dtype: name for name, dtype in hub.TORCH_DTYPES.items()}


def local_base(model: nn.Module) -> Path | None:
    """The folder that a model was loaded from: a local one, or the hub's in the cache.

    None for a model that was made in memory, and for one whose files cannot be fingerprinted (pickles).
    """
    config: Any = getattr(model, "config", None)
    name = str(getattr(config, "_name_or_path", "") or "")
    folder = hub.local_folder(name, getattr(config, "_commit_hash", None)) if name else None
    return folder if folder is not None and hub.holds_weights(folder) else None


def has_tokens_of_base(model: nn.Module) -> bool:
    """Whether the folder that a model was loaded from is known, and says that it has as many tokens."""
    folder = local_base(model)
    if folder is None:
        return False
    stored = hub.read_config(folder)
    known = (stored.get("text_config") or stored).get("vocab_size")
    config: Any = model.config
    return known is not None and known == getattr(config.get_text_config(), "vocab_size", None)


def fresh_modules(model: nn.Module, task_type: str | None) -> list[str]:
    """Modules of a classifier that its folder holds no weights for, so that each loading draws them anew.

    None for a model that was made in memory, or whose class cannot be told without code of its own.
    """
    folder = local_base(model)
    if folder is None or task_type != "SEQ_CLS":
        return []
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    try:
        base = hub.open_base(folder, "sequence-classification", labels)
    except UserError:
        return []
    names = (name for name, _ in base.graph.named_parameters())
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names if not base.places.fits(name)))


def facts_of_model(model: nn.Module, task_type: str | None) -> dict[str, Any]:
    """The settings of an adapter that merging and evaluating act upon (`adapter.config.SETTINGS`)."""
    config: Any = getattr(model, "config", None)
    settings: dict[str, Any] = {"method": "neuroada"}
    dtype = _dtype(model)
    if dtype in DTYPES:
        settings["dtype"] = DTYPES[dtype]
    kind = _quantization(model)
    if kind is not None:
        settings["quantization"] = kind
    if task_type == "SEQ_CLS":
        names: dict[int, str] = getattr(config, "id2label", None) or {}
        settings["num_labels"] = int(getattr(config, "num_labels", len(names)))
        settings["labels"] = [str(names[i]) for i in sorted(names)]
        settings["pad_token_id"] = getattr(config, "pad_token_id", None)
    return settings


def _dtype(model: nn.Module) -> torch.dtype | None:
    """Of the weights that train, which are those of linear layers; of packed ones, what they compute in."""
    from neuroada_cli.delta.quantized import compute_dtype
    from neuroada_cli.delta.targets import is_linear

    for module in model.modules():
        if is_quantized(module):
            return compute_dtype(module)
        if is_linear(module):
            weight = module.weight
            return weight.dtype if isinstance(weight, torch.Tensor) else None
    return None


def _quantization(model: nn.Module) -> str | None:
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            return "int8"
        if type(module).__name__ == "Linear4bit":
            state: Any = getattr(module.weight, "quant_state", None)
            return str(getattr(state, "quant_type", "nf4"))
    return None
