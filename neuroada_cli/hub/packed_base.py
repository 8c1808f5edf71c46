"""Bases whose files hold packed numbers, which nothing can be chosen from or merged into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuroada_cli.errors import ModelError
from neuroada_cli.foreign_text import short
from neuroada_cli.hub.resolve import read_config
from neuroada_cli.hub.weights import WEIGHT_DTYPES, Weights

# Of GPTQ's and AWQ's layout, compressed-tensors' and MXFP4's: no plain weight has such a name.
PACKED_ENDINGS = (".qweight", ".weight_packed", "_proj_blocks")


def refuse_packed(folder: Path, weights: Weights) -> None:
    """Raises ModelError for a base that was quantised before it was stored (MXFP4, GPTQ, AWQ, FP8, 4 bits of
    bitsandbytes), naming how; and for one whose config says so over plain weights: with these settings
    transformers makes layers of another kind (BitNet's round as they compute), or ones that cannot run, and a
    merged folder has no such settings.
    """
    config = read_config(folder)
    settings, place = _settings(config)
    if settings is None:
        packed = [name for name in weights if name.endswith(PACKED_ENDINGS) and _is_packed(weights, name)]
        by = "their names say so, though config.json has no quantization_config"
        if packed:
            raise _packed(folder, packed, by)
        return
    method = method_of(settings)
    by = f"{place} in config.json"
    if method is not None:
        by = f"quant_method {short(method)} in config.json" + (f"'s {place}" if "." in place else "")
    packed = [name for name in weights if _is_packed(weights, name)]
    if packed:
        raise _packed(folder, packed, by)
    by = by.removesuffix(" in config.json")
    if method is not None and is_known(method):
        raise ModelError(
            f"its layers are quantised by config.json ({by}), and its files hold no packed weight: what is "
            "trained there would be another model than the plain one that a merge writes",
            str(folder),
            "where they are a model's plain weights, take quantization_config out of config.json",
        )


def _packed(folder: Path, names: list[str], by: str) -> ModelError:
    return ModelError(
        f"stores {names[0]} and {len(names) - 1} more packed ({by}), not as the numbers that connections are "
        "chosen from",
        str(folder),
        "take a copy in 16 bits; model.quantization: nf4 trains that in 4 bits",
    )


def _settings(config: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
    """How a config says that its model was quantised, and where: models that see may say it of their text."""
    places = {"quantization_config": config.get("quantization_config")}
    for name, part in config.items():
        if name.endswith("_config") and isinstance(part, Mapping):
            places[f"{name}.quantization_config"] = part.get("quantization_config")
    found = ((held, place) for place, held in places.items() if isinstance(held, Mapping))
    return next(found, (None, ""))


def method_of(settings: Mapping[str, Any]) -> str | None:
    """How a config says that its model was quantised, if it does: older ones by bitsandbytes give bits."""
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    return str(settings["quant_method"]) if "quant_method" in settings else None


def is_known(method: str) -> bool:
    """Whether transformers acts upon it."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    known = set(AUTO_QUANTIZATION_CONFIG_MAPPING)
    return method in known or method in {name.partition("_")[0] for name in known}


def _is_packed(weights: Weights, name: str) -> bool:
    info = weights.info(name)
    return len(info.shape) > 1 and info.dtype not in WEIGHT_DTYPES
