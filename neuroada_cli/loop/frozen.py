"""The watch over frozen weights: they must be bit-equal from before training ever after.

Samples are looked at often, since that costs next to nothing; every entry once at the start and once at the
end, by a sum that no single entry can change without changing it.

O = output neurons, K = chosen inputs per neuron, N = sampled entries, R = rows and C = columns in memory
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroada_cli.delta.layout import Layout
from neuroada_cli.delta.sharded import deal_again, own_rows, sharded_layers
from neuroada_cli.delta.targets import target_of
from neuroada_cli.errors import NumericsError

SAMPLES = 256  # entries per tensor: whatever writes to a frozen tensor by mistake writes to all of it
PART_WORDS = 1 << 20  # of 8 bytes: so much is summed at a time, which keeps memory as it is
ODD = -7046029254386353131  # 2^64 / golden ratio as a signed number


@dataclass(frozen=True)
class _Frozen:
    """One tensor, and what may change of it: ascending places in it, None: nothing."""

    name: str
    tensor: Tensor
    chosen_N: Tensor | None
    place: tuple[Tensor, ...]  # one N-long index per dimension
    values: Tensor
    total: int


class FrozenWatch:
    """Every tensor that must not change: evenly spaced entries, and the sum over all.

    indices  module name -> int [O, K]: the only entries of that module's weight that may change
    Every other parameter is watched if it asks for no gradient, and every buffer of numbers that a model's
    file holds: no adapter does, so none may move. Take it after `attach`.
    """

    def __init__(self, model: nn.Module, indices: Mapping[str, Tensor]) -> None:
        deal_again(model)
        cut = {id(p): layer for layer in sharded_layers(model).values() for p in layer.cut.values()}
        targets = {id(target_of(model, name).weight): name for name in indices} if not cut else {}
        self._frozen: list[_Frozen] = []
        for name, parameter in model.named_parameters():
            chosen_N, layer = None, cut.get(id(parameter))
            if layer is not None and parameter is layer.cut.get("weight"):
                chosen_N = places(layer.own("index"), layer.own_layout, layer.own("index").device)
            elif id(parameter) in targets:
                if parameter.is_floating_point():  # a quantised weight keeps all of its bytes
                    target = targets[id(parameter)]
                    chosen_N = places(indices[target], target_of(model, target).layout, parameter.device)
            elif parameter.requires_grad or (layer is not None and id(parameter) in layer.changing()):
                continue
            tensor = own_rows(parameter)
            place = _spread(tensor, chosen_N)
            total = weighted_sum(tensor, chosen_N)
            self._frozen.append(_Frozen(name, tensor, chosen_N, place, tensor[place].clone(), total))
        for name, buffer in _saved_buffers(model):
            place = _spread(buffer, None)
            self._frozen.append(
                _Frozen(name, buffer, None, place, buffer[place].clone(), weighted_sum(buffer))
            )

    def check(self) -> None:
        """Look at the samples. Raises NumericsError naming the first frozen tensor that moved."""
        for frozen in self._frozen:
            if not torch.equal(frozen.tensor[frozen.place], frozen.values):
                raise _moved(frozen.name)

    def check_all(self) -> None:
        """Look at every entry. Raises NumericsError as `check` does."""
        for frozen in self._frozen:
            if weighted_sum(frozen.tensor, frozen.chosen_N) != frozen.total:
                raise _moved(frozen.name)


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those of floating point that `state_dict` holds."""
    for where, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and buffer.is_floating_point():
                yield f"{where}.{name}" if where else name, buffer


def _moved(name: str) -> NumericsError:
    return NumericsError(
        "frozen weights changed during training; no checkpoint of this step was written",
        name,
        "report this as a bug, with the recipe and the output of `neuroada env`",
    )


def places(index_OK: Tensor, layout: Layout, device: torch.device) -> Tensor:
    """Where the chosen entries of a weight lie in its tensor, ascending: int64 [N]."""
    index_OK = index_OK.to(device)
    return layout.flat(index_OK)[index_OK >= 0].sort().values


def _spread(tensor: Tensor, chosen_N: Tensor | None) -> tuple[Tensor, ...]:
    """Evenly spaced entries that are not chosen."""
    count = min(SAMPLES, tensor.numel())
    flat_N = torch.arange(count, device=tensor.device) * tensor.numel() // max(1, count)
    if chosen_N is not None:
        flat_N = flat_N[~torch.isin(flat_N, chosen_N)]
    return torch.unravel_index(flat_N, tensor.shape)


@torch.no_grad()
def weighted_sum(tensor: Tensor, chosen_N: Tensor | None = None) -> int:
    """sum_j w_j x_j mod 2^64 over the tensor's bytes, taken eight at a time, with an odd w_j for every place.

    A change of a single word x_j always changes it, since an odd number times what is not 0 is not 0.
    chosen_N  ascending places of entries that count as 0
    """
    if tensor.numel() == 0:
        return 0
    matrix_RC = tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
    per_row = matrix_RC.shape[1] * tensor.element_size()
    rows = max(8, PART_WORDS * 8 // per_row // 8 * 8)  # of eight rows every part begins with a whole word
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    odd = torch.empty(0)
    for start in range(0, len(matrix_RC), rows):
        part_RC = matrix_RC[start : start + rows]
        if chosen_N is not None:
            part_RC = _without(part_RC, start * part_RC.shape[1], chosen_N)
        words = _words(part_RC)
        if start == 0:  # the longest part
            odd = torch.arange(1, 2 * len(words), 2, device=words.device).mul_(ODD)
        total = total * ODD + words.mul(odd[: len(words)]).sum()
    return int(total)


def _without(part_RC: Tensor, first: int, chosen_N: Tensor) -> Tensor:
    """A copy of a part that begins at place `first` of its tensor, with its chosen entries at 0."""
    ends = torch.tensor([first, first + part_RC.numel()], device=chosen_N.device)
    begin, end = torch.searchsorted(chosen_N, ends).tolist()
    copy = part_RC.clone(memory_format=torch.contiguous_format)
    copy.view(-1).index_fill_(0, chosen_N[begin:end] - first, 0)
    return copy


def _words(part_RC: Tensor) -> Tensor:
    data = part_RC.contiguous().view(-1).view(torch.uint8)
    if data.numel() % 8 or data.storage_offset() % 8:
        data = torch.cat([data, data.new_zeros(-data.numel() % 8)])
    return data.view(torch.int64)
