"""Bases whose files hold packed numbers, which nothing can be chosen from or merged into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from neuroada_cli.errors import ModelError
from neuroada_cli.foreign_text import short
from neuroada_cli.hub.resolve import read_config
from neuroada_cli.hub.weights import WEIGHT_DTYPES, Weights


def refuse_packed(folder: Path, weights: Weights) -> None:
    """Raises ModelError for a base that was quantised before it was stored (MXFP4, GPTQ, AWQ, FP8, 4 bits of
    bitsandbytes), naming how.
    """
    settings = read_config(folder).get("quantization_config")
    if not isinstance(settings, Mapping):
        return
    method = str(settings.get("quant_method"))
    packed = [name for name in weights if _is_packed(weights, name)]
    if packed:
        raise ModelError(
            f"stores {packed[0]} and {len(packed) - 1} more packed (quant_method {short(method)} in "
            "config.json), not as the numbers that connections are chosen from",
            str(folder),
            "take a copy in 16 bits; model.quantization: nf4 trains that in 4 bits",
        )


def _is_packed(weights: Weights, name: str) -> bool:
    info = weights.info(name)
    return len(info.shape) > 1 and info.dtype not in WEIGHT_DTYPES
