"""Indices whose rows differ in length: a shorter row ends in -1.

O = output neurons, K = chosen inputs per neuron (here: of the longest row)
"""

from __future__ import annotations

import torch
from torch import Tensor


def filled(index_OK: Tensor) -> tuple[Tensor, Tensor | None]:
    """(an index without -1, which entries are real: bool [O, K], or None if all are).

    A place holder becomes the row's lowest column that is not chosen: with its delta at 0, folding writes
    back the value that is there.
    """
    if index_OK.numel() == 0 or int(index_OK.min()) >= 0:
        return index_OK, None
    real_OK = index_OK >= 0
    counted_K = torch.arange(index_OK.shape[1], device=index_OK.device)
    leading_O = (index_OK == counted_K).sum(dim=1)  # columns 0, 1, … that are chosen: rows ascend
    return torch.where(real_OK, index_OK, leading_O[:, None].to(index_OK.dtype)), real_OK


def size(index_OK: Tensor) -> int:
    """How many connections an index holds."""
    return int((index_OK >= 0).sum())
