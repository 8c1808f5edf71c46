"""A frozen weight that brings its deltas their gradients, however a model's own code uses it.

O = output neurons, I = inputs, K = chosen inputs per neuron, E = experts, S = (token, expert) pairs

A model need not call a linear layer through `nn.Linear.forward`: Falcon multiplies and adds the bias by
itself, Mamba reads `dt_proj.weight`, the experts of a mixture are slices of one tensor. Here the parameter
itself is watched: its products (`linear`, `matmul`, `bmm`, `grouped_mm`, …) run as they are, with the same
numbers and kernels, and their backward pass makes the sampled gradient

    d_delta_ok = sum_t g_to x_{t,index_ok}        (chain rule on NeuroAda eq. 2, arXiv:2510.18940)

expert by expert, without a gradient of the weight's size. What is done to it outside these products is right,
too, but goes through the dense gradient of that weight.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from neuroada_cli.delta.layout import Layout
from neuroada_cli.delta.products import Product, run_embedding, run_product


class Deltas(Protocol):
    """The layer whose deltas are folded into the weight."""

    weight: nn.Parameter
    layout: Layout
    index: Tensor
    delta: nn.Parameter
    backend: str | None

    def token(self) -> Tensor: ...
    def add(self, rows: slice, sampled_OK: Tensor) -> None: ...


@dataclasses.dataclass(frozen=True)
class View:
    """What a tensor is of a layer's weight.

    flipped  its last two dimensions are swapped
    expert   the matrix of this expert alone
    picked   int64 [S]: a matrix for each of S experts; the tensor then has their shape, but not their numbers
    """

    layer: weakref.ref[Any]
    flipped: bool = False
    expert: int | None = None
    picked: Tensor | None = None

    @property
    def deltas(self) -> Deltas:
        layer = self.layer()
        assert layer is not None  # it lies in the model beside the weight
        return cast(Deltas, layer)

    @property
    def neurons_are_rows(self) -> bool:
        return self.deltas.layout.transposed == self.flipped


class TrainedWeight(nn.Parameter):
    """A layer's weight, or a view of it (`View`); made by `watch`."""

    seen_as: View

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainedWeight:
        """The copy belongs to the copy of its layer."""
        with torch._C.DisableTorchFunctionSubclass():
            copied = cast(TrainedWeight, nn.Parameter(self.detach().clone(), requires_grad=False))
        memo[id(self)] = copied
        copied.__class__ = TrainedWeight
        layer = copy.deepcopy(self.seen_as.deltas, memo)
        copied.seen_as = dataclasses.replace(self.seen_as, layer=weakref.ref(layer))
        return copied


class Watching(TorchFunctionMode):
    """Inside, weights are watched that cannot be of another class: those of a model on fake tensors."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def watch(parameter: nn.Parameter, layer: nn.Module) -> None:
    """Let `layer`'s deltas have the gradients of this weight, the very object that the model holds."""
    if type(parameter) is nn.Parameter:
        parameter.__class__ = TrainedWeight
    cast(TrainedWeight, parameter).seen_as = View(weakref.ref(layer))


def unwatch(parameter: nn.Parameter) -> None:
    """A plain parameter again."""
    if is_watched(parameter):
        del parameter.seen_as
    if isinstance(parameter, TrainedWeight):
        parameter.__class__ = nn.Parameter  # type: ignore[assignment]


def is_watched(value: Any) -> TypeGuard[TrainedWeight]:
    """Whether it is a layer's weight, or a view of one."""
    return isinstance(value, Tensor) and "seen_as" in vars(value)


def _run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    if torch.is_grad_enabled() and _trains(args, kwargs):
        rule = RULES.get(func)
        found = NotImplemented if rule is None else rule(func, args, kwargs)
        if found is not NotImplemented:
            return found
        if func not in NO_GRADIENT and getattr(func, "__name__", "") not in ("__get__", "__set__"):
            args, kwargs = _replaced(args, dense), {k: _replaced(v, dense) for k, v in kwargs.items()}
    return plainly(func, args, kwargs)


def plainly(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """`func` as if the weight were a plain tensor."""
    args, kwargs = _replaced(args, _numbers), {k: _replaced(v, _numbers) for k, v in kwargs.items()}
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def dense(weight: TrainedWeight) -> Tensor:
    """The weight as a plain tensor with a dense gradient, of which the deltas take their entries."""
    view = weight.seen_as
    whole = cast(Tensor, _Dense.apply(view.deltas.token(), view.deltas))  # type: ignore[no-untyped-call]
    if view.expert is not None:
        whole = whole[view.expert]
    if view.picked is not None:
        whole = whole[view.picked]
    if view.flipped:
        whole = whole.transpose(-1, -2)
    with torch._C.DisableTorchFunctionSubclass():
        return whole.to(weight.dtype)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return cast(Tensor, layer.weight.data)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        layer.add(slice(0, len(layer.index)), layer.layout.take(grads[0], layer.index).float())
        return layer.delta.new_zeros(()), None


# ---------------------------------------------------------------------------------------------------
# What is known of an operation


def _trains(args: Any, kwargs: Mapping[str, Any]) -> bool:
    found: list[TrainedWeight] = []

    def find(weight: TrainedWeight) -> None:
        found.append(weight)

    _replaced((args, tuple(kwargs.values())), find)
    return any(weight.seen_as.deltas.delta.requires_grad for weight in found)


def _replaced(value: Any, change: Callable[[TrainedWeight], Any]) -> Any:
    """Arguments with every watched weight changed, also inside tuples and lists."""
    if is_watched(value):
        return change(value)
    if isinstance(value, tuple | list):
        inside = [_replaced(each, change) for each in value]
        return inside if isinstance(value, list) else tuple(inside)
    return value


def _numbers(weight: TrainedWeight) -> Tensor:
    """The tensor itself; where it stands for picked experts, their matrices."""
    view = weight.seen_as
    if view.picked is None:
        return weight
    with torch._C.DisableTorchFunctionSubclass():
        picked: Tensor = view.deltas.weight.detach()[view.picked]
        return picked.transpose(-1, -2) if view.flipped else picked


def _viewed(tensor: Tensor, view: View) -> TrainedWeight:
    """A tensor that was just made, known for what it is."""
    made = tensor
    if type(tensor) is Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            made = torch.Tensor._make_subclass(TrainedWeight, tensor, False)
    cast(TrainedWeight, made).seen_as = view
    return cast(TrainedWeight, made)


def _same(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Another data type or device, or other strides: the same numbers, in the same places."""
    view = args[0].seen_as if is_watched(args[0]) else None
    if view is None or view.picked is not None:
        return NotImplemented
    made = plainly(func, args, kwargs)
    return _viewed(made, view) if isinstance(made, Tensor) else made  # `type()` without a type is a name


def _turned(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The last two dimensions swapped."""
    weight = args[0]
    last = {weight.ndim - 1, weight.ndim - 2}
    dims = [*args[1:], *kwargs.values()]
    if dims and {dim % weight.ndim for dim in dims} != last:
        return NotImplemented
    if not dims and weight.ndim != 2 and func is not _T.mT.__get__:
        return NotImplemented
    with torch._C.DisableTorchFunctionSubclass():
        turned = weight.transpose(-1, -2)
    return _viewed(turned, dataclasses.replace(weight.seen_as, flipped=not weight.seen_as.flipped))


def _indexed(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """One expert, or a matrix for each of a list of experts."""
    weight, index = args
    view = weight.seen_as if is_watched(weight) else None
    if view is None or view.deltas.layout.experts is None or weight.ndim != 3 or view.picked is not None:
        return NotImplemented
    if isinstance(index, Tensor) and index.ndim == 1 and index.dtype in (torch.int64, torch.int32):
        with torch._C.DisableTorchFunctionSubclass():
            shape = weight.detach()[0].expand(len(index), *weight.shape[1:])
        return _viewed(shape, dataclasses.replace(view, picked=index))
    if isinstance(index, int) or (isinstance(index, Tensor) and index.ndim == 0):
        expert = int(index) % len(weight)
        with torch._C.DisableTorchFunctionSubclass():
            return _viewed(weight[expert], dataclasses.replace(view, expert=expert))
    return NotImplemented


def _linear(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
    return _multiplied(func, "linear", given["input"], given["weight"], given.get("bias"))


def _matmul(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    if kwargs or len(args) != 2:
        return NotImplemented
    left, right = args[::-1] if func is torch.Tensor.__rmatmul__ else args
    if is_watched(left):
        return _multiplied(torch.matmul, "left", right, left)
    return _multiplied(torch.matmul, "right", left, right)


def _addmm(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    if kwargs or len(args) != 3 or is_watched(args[1]):
        return NotImplemented
    bias, x, weight = args
    return _multiplied(func, "right", x, weight, bias)


def _grouped(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    offsets = kwargs.get("offs", args[2] if len(args) > 2 else None)
    more = {key for key, value in kwargs.items() if value is not None} - {"offs"} or args[3:]
    if offsets is None or more or len(args) < 2 or is_watched(args[0]) or args[0].ndim != 2:
        return NotImplemented
    return _multiplied(func, "right", args[0], args[1], offsets=offsets)


def _multiplied(
    func: Any, kind: str, x: Any, weight: Any, bias: Any = None, offsets: Tensor | None = None
) -> Any:
    """One product of a watched weight with activations, if it is of a known form."""
    plain = isinstance(x, Tensor) and not is_watched(x) and not is_watched(bias)
    if not plain or not is_watched(weight) or x.ndim < 2:
        return NotImplemented
    if weight.ndim == 3 and offsets is None and (x.ndim != 3 or len(x) != len(weight)):
        return NotImplemented
    if weight.ndim not in (2, 3) or (weight.ndim == 2 and offsets is not None):
        return NotImplemented
    if func is torch.baddbmm and bias.shape[0] not in (1, len(x)):
        return NotImplemented
    product = Product(func, kind, weight, weight.seen_as, offsets)
    return run_product(product, x, bias)


def _embedding(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    weight = given["weight"]
    odd = given.get("max_norm") is not None or given.get("scale_grad_by_freq") or given.get("sparse")
    if odd or not is_watched(weight) or not weight.seen_as.neurons_are_rows:
        return NotImplemented
    return run_embedding(weight.seen_as, given["input"], weight, given.get("padding_idx"))


_T: Any = torch.Tensor
RULES: dict[Any, Callable[[Any, Any, Mapping[str, Any]], Any]] = {
    **dict.fromkeys(
        (_T.to, _T.type, _T.type_as, _T.float, _T.half, _T.bfloat16, _T.double, _T.contiguous), _same
    ),
    **dict.fromkeys(
        (_T.T.__get__, _T.mT.__get__, _T.t, torch.t, _T.transpose, torch.transpose, _T.swapaxes),
        _turned,
    ),
    _T.__getitem__: _indexed,
    F.linear: _linear,
    **dict.fromkeys(
        (torch.matmul, _T.matmul, _T.__matmul__, _T.__rmatmul__, torch.mm, _T.mm, torch.bmm, _T.bmm), _matmul
    ),
    **dict.fromkeys((torch.addmm, torch.baddbmm), _addmm),
    **dict.fromkeys(
        [f for f in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)) if f], _grouped
    ),
    F.embedding: _embedding,
}
# looked at without taking part in what is computed
NO_GRADIENT = {
    _T.detach, _T.size, _T.stride, _T.dim, _T.numel, _T.element_size, _T.data_ptr, _T.is_contiguous,
    _T.is_floating_point, torch.is_floating_point, _T.is_complex, _T.untyped_storage, _T.requires_grad_,
    _T.__len__, _T.__repr__, _T.register_hook, _T.storage_offset, _T.get_device, torch.numel,
}  # fmt: skip
