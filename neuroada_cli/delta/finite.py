"""NaN and infinity: whether there are any, and where."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def all_finite(tensor: Tensor) -> bool:
    """By its extremes, which NaN takes, too: far quicker than a look at each number, and without a copy."""
    return tensor.numel() == 0 or all(torch.isfinite(extreme) for extreme in torch.aminmax(tensor))


def broken_row(tensor: Tensor) -> int:
    """The first index along the first dimension with NaN or infinity in it. Slow beside `all_finite`: to be
    asked when something is wrong.
    """
    wrong = ~torch.isfinite(tensor)
    return int(wrong.reshape(max(1, len(tensor)) if tensor.ndim else 1, -1).any(dim=1).nonzero()[0])


def where_broken(model: nn.Module) -> str | None:
    """Name and row of the first parameter of a model that holds NaN or infinity; None where none does. A
    sharded one, of which this rank's part is looked at, is named without its row.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.is_meta:
            continue
        held = parameter.detach()
        to_local = getattr(held, "to_local", None)  # of a DTensor
        if to_local is None and not all_finite(held):
            return f"{name}, row {broken_row(held)}"
        if to_local is not None and not all_finite(to_local()):
            return name
    return None
