"""The watch over frozen weights: they must be bit-equal from before training ever after.

Samples are looked at often, since that costs next to nothing; every entry once at the start and once at the
end, by a sum that no single entry can change without changing it.

O = output neurons, K = chosen inputs per neuron, N = sampled entries, R = rows and C = columns in memory
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroada_cli.delta.layout import Layout, layout_of
from neuroada_cli.delta.linear import DeltaLayer
from neuroada_cli.errors import NumericsError

SAMPLES = 256  # entries per tensor: whatever writes to a frozen tensor by mistake writes to all of it
PART_WORDS = 1 << 20  # of 8 bytes: so much is summed at a time, which keeps memory as it is
ODD = -7046029254386353131  # 2^64 / golden ratio as a signed number


@dataclass(frozen=True)
class _Frozen:
    """One tensor: what may change of it (None: nothing), and where its neurons lie."""

    name: str
    tensor: Tensor
    index_OK: Tensor | None
    layout: Layout | None
    place: tuple[Tensor, ...]  # one N-long index per dimension
    values: Tensor
    total: int


class FrozenWatch:
    """Every tensor that must not change: evenly spaced entries, and the sum over all.

    indices  module name -> int [O, K]: the only entries of that module's weight that may change
    Every other parameter is watched if it asks for no gradient. Take it after `attach`.
    """

    def __init__(self, model: nn.Module, indices: Mapping[str, Tensor]) -> None:
        targets = {id(model.get_submodule(name).weight): (name, index) for name, index in indices.items()}
        self._frozen: list[_Frozen] = []
        for name, parameter in model.named_parameters():
            index_OK, layout = None, None
            if id(parameter) in targets:
                module_name, index_OK = targets[id(parameter)]
                module = model.get_submodule(module_name)
                layout = module.layout if isinstance(module, DeltaLayer) else layout_of(module)
                if not parameter.is_floating_point():  # a quantised weight keeps all of its bytes
                    index_OK = None
            elif parameter.requires_grad:
                continue
            tensor = parameter.detach()
            place = _spread(tensor)
            if index_OK is not None and layout is not None:
                place = _outside(place, index_OK, layout)
            total = weighted_sum(tensor, index_OK, layout)
            self._frozen.append(_Frozen(name, tensor, index_OK, layout, place, tensor[place].clone(), total))

    def check(self) -> None:
        """Look at the samples. Raises NumericsError naming the first frozen tensor that moved."""
        for frozen in self._frozen:
            if not torch.equal(frozen.tensor[frozen.place], frozen.values):
                raise _moved(frozen.name)

    def check_all(self) -> None:
        """Look at every entry. Raises NumericsError as `check` does."""
        for frozen in self._frozen:
            if weighted_sum(frozen.tensor, frozen.index_OK, frozen.layout) != frozen.total:
                raise _moved(frozen.name)


def _moved(name: str) -> NumericsError:
    return NumericsError(
        "frozen weights changed during training; no checkpoint of this step was written",
        name,
        "report this as a bug, with the recipe and the output of `neuroada env`",
    )


def _spread(tensor: Tensor) -> tuple[Tensor, ...]:
    count = min(SAMPLES, tensor.numel())
    flat_N = torch.arange(count, device=tensor.device) * tensor.numel() // max(1, count)
    return torch.unravel_index(flat_N, tensor.shape)


def _outside(place: tuple[Tensor, ...], index_OK: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    """Those of some entries of a target's weight that are not chosen."""
    column_N, row_N = place if layout.transposed else (place[1], place[0])
    chosen_NK = index_OK.to(row_N.device)[row_N] == column_N[:, None]
    kept_N = ~chosen_NK.any(dim=1)
    return place[0][kept_N], place[1][kept_N]


@torch.no_grad()
def weighted_sum(tensor: Tensor, index_OK: Tensor | None = None, layout: Layout | None = None) -> int:
    """sum_j w_j x_j mod 2^64 over the tensor's bytes, taken eight at a time, with an odd w_j for every place.

    A change of a single word x_j always changes it, since an odd number times what is not 0 is not 0.
    index_OK  chosen entries of a weight that lies as `layout` says: they count as 0
    """
    if tensor.numel() == 0:
        return 0
    matrix_RC = tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1)
    per_row = matrix_RC.shape[1] * tensor.element_size()
    rows = max(8, PART_WORDS * 8 // per_row // 8 * 8)  # of eight rows every part begins with a whole word
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    odd = torch.empty(0)
    for start in range(0, len(matrix_RC), rows):
        part_RC = matrix_RC[start : start + rows]
        if index_OK is not None and layout is not None:
            part_RC = _without(part_RC, start, index_OK, layout)
        words = _words(part_RC)
        if start == 0:  # the longest part
            odd = torch.arange(1, 2 * len(words), 2, device=words.device).mul_(ODD)
        total = total * ODD + words.mul(odd[: len(words)]).sum()
    return int(total)


def _without(part_RC: Tensor, start: int, index_OK: Tensor, layout: Layout) -> Tensor:
    """A copy of rows `start`, start + 1, … of a weight in memory, with its chosen entries at 0."""
    stop, columns = start + len(part_RC), part_RC.shape[1]
    index_OK = index_OK.to(part_RC.device, torch.int64)
    neuron_O1 = torch.arange(len(index_OK), device=index_OK.device)[:, None]
    if layout.transposed:
        inside_OK = (index_OK >= start) & (index_OK < stop)
        flat_OK = (index_OK - start) * columns + neuron_O1
    else:
        index_OK, neuron_O1 = index_OK[start:stop], neuron_O1[start:stop]
        inside_OK = index_OK >= 0
        flat_OK = (neuron_O1 - start) * columns + index_OK
    copy = part_RC.clone(memory_format=torch.contiguous_format)
    copy.view(-1).index_fill_(0, flat_OK[inside_OK], 0)
    return copy


def _words(part_RC: Tensor) -> Tensor:
    data = part_RC.contiguous().view(-1).view(torch.uint8)
    if data.numel() % 8 or data.storage_offset() % 8:
        data = torch.cat([data, data.new_zeros(-data.numel() % 8)])
    return data.view(torch.int64)
