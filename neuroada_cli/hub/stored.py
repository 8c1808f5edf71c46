"""What the files of a model hold as a whole."""

from __future__ import annotations

import torch

from neuroada_cli import hub
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.weights import WEIGHT_DTYPES

__all__ = ["WEIGHT_DTYPES", "main_dtype"]


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
