"""round(W + delta): the only place where deltas meet weights, for attached layers and for merging alike.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from neuroada_cli.delta import native, triton_update
from neuroada_cli.delta.layout import Layout


def fold_entries(base_OK: Tensor, delta_OK: Tensor, dtype: torch.dtype) -> Tensor:
    """round(base + delta) to `dtype`, the sum in fp32 (in fp64 for an fp64 base)."""
    wide = torch.promote_types(base_OK.dtype, torch.float32)
    return (base_OK.to(wide) + delta_OK).to(dtype)


def write_entries(weight: Tensor, index_OK: Tensor, values_OK: Tensor, layout: Layout) -> None:
    """W[o, index_ok] = values_ok in place; weight is contiguous and lies as its layout says.

    Not `scatter_`: on the CPU it takes a thousand times longer for 16-bit types (`benchmarks/refold.py`).
    """
    with torch._C.DisableTorchFunctionSubclass():  # the weight may be watched
        if native.fold_available(weight, index_OK, values_OK, None):
            native.fold([(weight, index_OK, values_OK, None, layout)])
        else:
            weight.put_(layout.flat(index_OK), values_OK)


def take_entries(weight: Tensor, index_OK: Tensor, layout: Layout) -> Tensor:
    """W[o, index_ok], the columns of which were checked: [O, K]. The way back of `write_entries`."""
    with torch._C.DisableTorchFunctionSubclass():  # the weight may be watched
        if native.take_available(weight, index_OK):
            return native.take(weight, index_OK, layout)
        return layout.take(weight, index_OK)


@torch.no_grad()
def fold_all(jobs: Iterable[native.Fold]) -> None:
    """W[o, index_ok] = round(base_ok + delta_ok) in place, for each (weight, index, base, delta, layout).

    All that a kernel of this device takes in one call, which gives the same bits.
    """
    with torch._C.DisableTorchFunctionSubclass():  # the weights may be watched
        fast, on_cuda = [], []
        for weight, index_OK, base_OK, delta_OK, layout in jobs:
            assert delta_OK is not None
            if native.fold_available(weight, index_OK, base_OK, delta_OK):
                fast.append((weight, index_OK, base_OK, delta_OK, layout))
            elif triton_update.fits((weight, index_OK, base_OK, delta_OK, layout)):
                on_cuda.append((weight, index_OK, base_OK, delta_OK, layout))
            else:
                write_entries(weight, index_OK, fold_entries(base_OK, delta_OK, weight.dtype), layout)
        if fast:
            native.fold(fast)
        if on_cuda:
            triton_update.fold(on_cuda)
