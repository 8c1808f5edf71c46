"""round(W + delta): the only place where deltas meet weights, for attached layers and for merging alike.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuroada_cli.delta.layout import Layout


def fold_entries(base_OK: Tensor, delta_OK: Tensor, dtype: torch.dtype) -> Tensor:
    """round(base + delta) to `dtype`, the sum in fp32 (in fp64 for an fp64 base)."""
    wide = torch.promote_types(base_OK.dtype, torch.float32)
    return (base_OK.to(wide) + delta_OK).to(dtype)


def write_entries(weight: Tensor, index_OK: Tensor, values_OK: Tensor, layout: Layout) -> None:
    """W[o, index_ok] = values_ok in place; weight is contiguous and lies as its layout says.

    Not `scatter_`: on the CPU it takes a thousand times longer for 16-bit types (`benchmarks/refold.py`).
    """
    weight.put_(layout.flat(index_OK), values_OK)
