"""Tensors that know where each of their numbers came from: how conversions of a model's files are followed.

transformers loads a model through its own conversion rules: names change, experts are stacked, projections
cut or joined, matrices turned. The very code of these rules is run here on `Traced` tensors, which have a
shape and, in place of numbers, a way back: the stored tensor and the place in it that a number is read from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

Coordinates = tuple[Tensor, ...]  # one int64 tensor per dimension, all of one length N
Back = Callable[
    [Coordinates], tuple[Tensor, Tensor]
]  # -> (number of the stored tensor, place in it), int64 [N]


class NotTraced(Exception):
    """A conversion does something to a tensor that cannot be followed."""


class Traced(Tensor):
    """A tensor on the meta device with its way back; made by `stored`."""

    back: Back

    def lies_at(self, flat_N: Tensor) -> tuple[Tensor, Tensor]:
        """(numbers of the stored tensors, places in them) of places in this tensor."""
        return self.back(_unravel(flat_N, tuple(self.shape)))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        with torch._C.DisableTorchFunctionSubclass():
            made = func(*args, **kwargs)
        several = isinstance(made, tuple | list) and not isinstance(made, torch.Size)
        if not isinstance(made, Tensor) and not (several and any(isinstance(each, Tensor) for each in made)):
            return made  # a shape, a number, a data type
        if name not in RULES:
            raise NotTraced(name)
        ways = RULES[name](args, kwargs)
        if several:
            return tuple(_traced(each, way) for each, way in zip(made, ways, strict=True))
        return _traced(made, cast(Back, ways))


def stored(number: int, shape: Sequence[int], dtype: torch.dtype) -> Traced:
    """The tensor that lies in the files, by its number."""

    def back(coordinates: Coordinates) -> tuple[Tensor, Tensor]:
        flat_N = _ravel(coordinates, shape)
        return torch.full_like(flat_N, number), flat_N

    return _traced(torch.empty(tuple(shape), dtype=dtype, device="meta"), back)


def _traced(tensor: Tensor, back: Back) -> Traced:
    with torch._C.DisableTorchFunctionSubclass():
        made = tensor.detach().as_subclass(Traced)
    made.back = back
    return made


def _ravel(coordinates: Coordinates, shape: Sequence[int]) -> Tensor:
    flat_N = torch.zeros_like(coordinates[0]) if coordinates else torch.zeros(1, dtype=torch.int64)
    for coordinate, size in zip(coordinates, shape, strict=True):
        flat_N = flat_N * size + coordinate
    return flat_N


def _unravel(flat_N: Tensor, shape: Sequence[int]) -> Coordinates:
    found = []
    for size in reversed(shape):
        found.append(flat_N % size)
        flat_N = flat_N // size
    return tuple(reversed(found))


# ---------------------------------------------------------------------------------------------------
# One rule per operation: what goes in -> the way back of what comes out


def _argument(args: Any, kwargs: Mapping[str, Any], place: int, name: str, otherwise: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, otherwise)


def _same(args: Any, kwargs: Mapping[str, Any]) -> Back:
    return cast(Traced, args[0]).back


def _cat(args: Any, kwargs: Mapping[str, Any]) -> Back:
    parts: list[Traced] = list(args[0])
    dim = _argument(args, kwargs, 1, "dim", 0) % parts[0].ndim
    ends = torch.tensor([part.shape[dim] for part in parts]).cumsum(0)

    def back(coordinates: Coordinates) -> tuple[Tensor, Tensor]:
        which_N = torch.searchsorted(ends, coordinates[dim], right=True)
        return _from_parts(
            parts, which_N, coordinates, lambda c, which: _with(c, dim, c[dim] - _start(which))
        )

    def _start(which: int) -> int:
        return int(ends[which - 1]) if which else 0

    return back


def _stack(args: Any, kwargs: Mapping[str, Any]) -> Back:
    parts: list[Traced] = list(args[0])
    dim = _argument(args, kwargs, 1, "dim", 0) % (parts[0].ndim + 1)

    def back(coordinates: Coordinates) -> tuple[Tensor, Tensor]:
        return _from_parts(parts, coordinates[dim], coordinates, lambda c, _: c[:dim] + c[dim + 1 :])

    return back


def _from_parts(
    parts: list[Traced],
    which_N: Tensor,
    coordinates: Coordinates,
    inside: Callable[[Coordinates, int], Coordinates],
) -> tuple[Tensor, Tensor]:
    number_N, place_N = torch.empty_like(which_N), torch.empty_like(which_N)
    for which in sorted(set(which_N.tolist())):
        mine = which_N == which
        own = tuple(coordinate[mine] for coordinate in coordinates)
        number_N[mine], place_N[mine] = parts[which].back(inside(own, which))
    return number_N, place_N


def _with(coordinates: Coordinates, dim: int, value: Tensor) -> Coordinates:
    return (*coordinates[:dim], value, *coordinates[dim + 1 :])


def _cut(tensor: Traced, dim: int, sizes: Sequence[int]) -> list[Back]:
    ways: list[Back] = []
    start = 0
    for size in sizes:
        ways.append(_further(tensor, dim, start))
        start += size
    return ways


def _further(tensor: Traced, dim: int, start: int) -> Back:
    return lambda coordinates: tensor.back(_with(coordinates, dim, coordinates[dim] + start))


def _chunk(args: Any, kwargs: Mapping[str, Any]) -> list[Back]:
    tensor, count = args[0], _argument(args, kwargs, 1, "chunks")
    dim = _argument(args, kwargs, 2, "dim", 0) % tensor.ndim
    return _cut(tensor, dim, [len(piece) for piece in torch.chunk(_line(tensor.shape[dim]), count)])


def _split(args: Any, kwargs: Mapping[str, Any]) -> list[Back]:
    tensor, sizes = args[0], _argument(args, kwargs, 1, "split_size_or_sections")
    dim = _argument(args, kwargs, 2, "dim", 0) % tensor.ndim
    return _cut(tensor, dim, [len(piece) for piece in torch.split(_line(tensor.shape[dim]), sizes)])


def _line(length: int) -> Tensor:
    """To be cut by torch itself, whose rule for lengths that do not divide, or are 0, is then the rule."""
    return torch.empty(length, device="meta")


def _unbind(args: Any, kwargs: Mapping[str, Any]) -> list[Back]:
    tensor = args[0]
    dim = _argument(args, kwargs, 1, "dim", 0) % tensor.ndim
    return [_chosen(tensor, dim, at) for at in range(tensor.shape[dim])]


def _chosen(tensor: Traced, dim: int, at: int) -> Back:
    def back(coordinates: Coordinates) -> tuple[Tensor, Tensor]:
        length = coordinates[0] if coordinates else torch.zeros(1, dtype=torch.int64)
        return tensor.back((*coordinates[:dim], torch.full_like(length, at), *coordinates[dim:]))

    return back


def _transpose(args: Any, kwargs: Mapping[str, Any]) -> Back:
    tensor = args[0]
    one = _argument(args, kwargs, 1, "dim0") % tensor.ndim
    other = _argument(args, kwargs, 2, "dim1") % tensor.ndim

    def back(coordinates: Coordinates) -> tuple[Tensor, Tensor]:
        swapped = list(coordinates)
        swapped[one], swapped[other] = swapped[other], swapped[one]
        return cast(Traced, tensor).back(tuple(swapped))

    return back


def _permute(args: Any, kwargs: Mapping[str, Any]) -> Back:
    tensor = args[0]
    dims = args[1] if isinstance(_argument(args, kwargs, 1, "dims"), tuple | list) else args[1:]

    def back(coordinates: Coordinates) -> tuple[Tensor, Tensor]:
        original: list[Tensor] = [coordinates[0]] * tensor.ndim
        for coordinate, dim in zip(coordinates, dims, strict=True):
            original[dim % tensor.ndim] = coordinate
        return cast(Traced, tensor).back(tuple(original))

    return back


def _reshape(args: Any, kwargs: Mapping[str, Any]) -> Back:
    tensor = args[0]
    wanted = args[1] if isinstance(_argument(args, kwargs, 1, "shape"), tuple | list) else args[1:]
    before, after = tuple(tensor.shape), list(wanted)
    if -1 in after:
        known = -math.prod(after)
        after[after.index(-1)] = math.prod(before) // max(1, known)

    def back(coordinates: Coordinates) -> tuple[Tensor, Tensor]:
        return cast(Traced, tensor).back(_unravel(_ravel(coordinates, after), before))

    return back


def _squeeze(args: Any, kwargs: Mapping[str, Any]) -> Back:
    tensor, dim = args[0], _argument(args, kwargs, 1, "dim")
    if dim is None:
        raise NotTraced("squeeze without a dimension")
    if tensor.shape[dim] != 1:
        return cast(Traced, tensor).back
    return _chosen(tensor, dim % tensor.ndim, 0)


def _unsqueeze(args: Any, kwargs: Mapping[str, Any]) -> Back:
    tensor, dim = args[0], _argument(args, kwargs, 1, "dim")
    dim %= tensor.ndim + 1
    return lambda c: cast(Traced, tensor).back(c[:dim] + c[dim + 1 :])


def _index(args: Any, kwargs: Mapping[str, Any]) -> Back:
    tensor, index = args
    if index is Ellipsis:
        return cast(Traced, tensor).back
    if isinstance(index, int):
        return _chosen(tensor, 0, index % tensor.shape[0])
    raise NotTraced(f"an index {index!r}")


RULES: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    **dict.fromkeys(("contiguous", "to", "detach", "clone", "float", "bfloat16", "half"), _same),
    **dict.fromkeys(("cat", "concat"), _cat),
    "stack": _stack,
    "chunk": _chunk,
    "split": _split,
    "unbind": _unbind,
    **dict.fromkeys(("transpose", "swapaxes"), _transpose),
    "permute": _permute,
    **dict.fromkeys(("reshape", "view"), _reshape),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "__getitem__": _index,
}
