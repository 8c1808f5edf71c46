"""A model's layers and the tensors that its files hold for them."""

from __future__ import annotations

import torch
from torch import nn

from neuroada_cli import hub
from neuroada_cli.delta.targets import Target, sharing_modules
from neuroada_cli.errors import ModelError

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_weight(weights: hub.Weights, stored: str, name: str, target: Target) -> None:
    """Raises ModelError when the stored weight of a target has not the layer's shape, or a packed type (a
    quantised model).
    """
    info = weights.info(stored)
    if info.dtype not in WEIGHT_DTYPES:
        raise ModelError(
            f"{stored} is stored as {str(info.dtype).removeprefix('torch.')}",
            str(info.file),
            "use the model's 16- or 32-bit original",
        )
    expected = target.layout.stored_shape
    if info.shape != expected:
        raise ModelError(
            f"{stored} has the shape {list(info.shape)}, but {name} needs {list(expected)}", str(info.file)
        )


def stored_names(weights: hub.Weights, skeleton: nn.Module, name: str) -> list[str]:
    """Every name under which the files hold a module's weight: a tied weight may be stored once or twice.

    Raises ModelError when there is none.
    """
    prefix = str(skeleton.base_model_prefix)
    modules = [name, *sharing_modules(skeleton, [name])[name]]
    found = [hub.stored_name(weights, f"{module}.weight", prefix) for module in modules]
    return list(dict.fromkeys(n for n in found if n)) or [hub.tensor_name(weights, name, prefix)]


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
