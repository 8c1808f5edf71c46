"""What the files of a model hold as a whole."""

from __future__ import annotations

import math

import torch

from neuroada_cli import hub
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.weights import WEIGHT_DTYPES

__all__ = ["WEIGHT_DTYPES", "main_dtype", "own_dtype", "rounded_by"]

ALL_OF = 1 << 28  # numbers up to which every one is looked at; of more, evenly spaced blocks
BLOCK = 1 << 16


def main_dtype(weights: hub.Weights) -> torch.dtype:
    """The floating type that most bytes of the files have. Raises ModelError for a model without any."""
    sizes: dict[torch.dtype, int] = {}
    for name in weights:
        info = weights.info(name)
        if info.dtype in WEIGHT_DTYPES:
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    if not sizes:
        raise ModelError("holds no 16- or 32-bit weights", str(weights.folder), "use the model's original")
    return max(sizes, key=lambda dtype: sizes[dtype])


def own_dtype(weights: hub.Weights) -> str:
    """The recipe's name of the type that the files are loaded in as they are; of doubles, the nearest one."""
    found = main_dtype(weights)
    return next((name for name, dtype in hub.TORCH_DTYPES.items() if dtype == found), "fp32")


def rounded_by(weights: hub.Weights, dtype: torch.dtype) -> tuple[int, int]:
    """(how many of the files' numbers another type changes, how many there are).

    Of more than ALL_OF numbers the first is an estimate, by evenly spaced blocks of every tensor.
    """
    total, changed = 0, 0.0
    step = max(1, math.ceil(weights.parameters / ALL_OF))
    for name in weights:
        info = weights.info(name)
        if info.dtype not in WEIGHT_DTYPES:
            continue
        count = math.prod(info.shape)
        total += count
        if torch.promote_types(info.dtype, dtype) == dtype or not count:
            continue
        looked = different = 0
        flat = weights.tensor(name).reshape(-1)
        for start in range(0, count, BLOCK * step):
            block = flat[start : start + BLOCK]
            looked += block.numel()
            different += int((block.to(dtype).to(block.dtype) != block).sum())
        changed += different / looked * count
    return round(changed), total
