"""round(W + delta): the only place where deltas meet weights.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

import torch
from torch import Tensor


def write_entries(weight: Tensor, index_OK: Tensor, values_OK: Tensor, transposed: bool = False) -> None:
    """weight[o, index_ok] = values_ok in place; weight is contiguous, [O, I], or [I, O] if `transposed`.

    Not `scatter_`: on the CPU it takes a thousand times longer for 16-bit types (`benchmarks/refold.py`).
    """
    outputs = index_OK.shape[0]
    row_O1 = torch.arange(outputs, device=weight.device)[:, None]
    flat_OK = index_OK.long() * outputs + row_O1 if transposed else row_O1 * weight.shape[1] + index_OK
    weight.put_(flat_OK, values_OK)


def fold_entries(base_OK: Tensor, delta_OK: Tensor, dtype: torch.dtype) -> Tensor:
    """round(base + delta), the sum in fp32 (fp64 for an fp64 base), as the attached layer computes it."""
    wide = torch.promote_types(base_OK.dtype, torch.float32)
    return (base_OK.to(wide) + delta_OK).to(dtype)
