"""Layers with K trainable connections per output neuron, folded into the frozen weight.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens (batch x sequence), V = vocabulary

    y_o = sum_i W_oi x_i + sum_k delta_ok x_{index_ok}          (NeuroAda eq. 2, arXiv:2510.18940)

The weight in memory is already round(W + delta), so the forward is one plain `F.linear`; `base_values` keeps
the K original entries per row, `delta` is the fp32 master, and `refold` rewrites those K entries after each
optimizer step. What trains is exactly what is shipped.
"""

from __future__ import annotations

import weakref
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuroada_cli.delta.fold import fold_all, take_entries, write_entries
from neuroada_cli.delta.index import filled
from neuroada_cli.delta.layout import Layout, is_conv1d, layout_of
from neuroada_cli.delta.native import Fold
from neuroada_cli.delta.products import without_view
from neuroada_cli.delta.sampled_grad import sampled_grad


class _FoldedLinear(torch.autograd.Function):
    """y = x W'^T + b with a sampled gradient for delta. Saves x and a reference to W', copies neither."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta_OK: Tensor, layer: DeltaLinear, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        # delta is an input only so that autograd asks for its gradient: its values are in the weight already
        ctx.layer = layer
        needs_x = delta_OK.requires_grad
        # save_for_backward watches versions: a refold between forward and backward is then an error
        ctx.save_for_backward(x if needs_x else None, weight)
        ctx.x_dtype = x.dtype
        with torch._C.DisableTorchFunctionSubclass():  # the weight may be watched
            ctx.state = layer.state(weight)
            return without_view(layer.plain_forward(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, Tensor | None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        layer: DeltaLinear = ctx.layer
        _refuse_changed(ctx.state, layer.state(weight))
        wants_x, wants_delta, _, _, wants_bias = ctx.needs_input_grad
        grad_TO = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_delta_OK = grad_bias_O = None
        if wants_x:
            with torch._C.DisableTorchFunctionSubclass():
                grad_TI = torch.mm(grad_TO, layer.effective_OI(weight).to(grad.dtype))
                grad_x = grad_TI.view(*grad.shape[:-1], -1).to(ctx.x_dtype)
        if wants_delta:
            x_TI = x.reshape(-1, x.shape[-1])
            grad_delta_OK = sampled_grad(grad_TO, x_TI, layer.index, layer.backend)
            if layer.real is not None:
                grad_delta_OK.mul_(layer.real)
        if wants_bias:
            grad_bias_O = grad_TO.float().sum(dim=0).to(grad.dtype)
        return grad_x, grad_delta_OK, None, None, grad_bias_O


def _refuse_changed(before: tuple[int, Tensor | None], now: tuple[int, Tensor | None]) -> None:
    """A layer that is computed again saves its weight anew: torch does not see that it changed."""
    if before[0] != now[0] or before[1] is not now[1]:
        raise RuntimeError(
            "the weight was modified by an inplace operation between forward and backward pass"
        )


class _Token(torch.autograd.Function):
    """A number that every product of a watched weight depends on: its backward pass comes after theirs."""

    @staticmethod
    def forward(ctx: Any, delta_OK: Tensor, layer: DeltaLayer) -> Tensor:
        ctx.layer = weakref.ref(layer)  # the layer holds this node
        return delta_OK.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        return ctx.layer().take_sums(), None


class DeltaLayer(nn.Module):
    """The deltas folded into one weight, and how to fold and restore.

    index        int32 [O, K], ascending columns per row
    real         bool [O, K]: which of them train, where not all do (else None); the others get no gradient:
                 place holders where rows differ in length, and deltas that rest after a new selection
    base_values  [O, K] in the weight's dtype: the frozen entries that the folded ones replaced
    delta        fp32 [O, K], the trainable part
    backend      name of a sampled-gradient back-end, or None for the measured choice
    """

    weight: nn.Parameter
    index: Tensor
    real: Tensor | None
    base_values: Tensor
    delta: nn.Parameter

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.backend: str | None = None
        self._made_token: tuple[nn.Parameter, Tensor] | None = None
        self._sums_OK: Tensor | None = None

    def _own_deltas(self, index_OK: Tensor) -> None:
        outputs, inputs = self.layout.shape
        if index_OK.ndim != 2 or index_OK.shape[0] != outputs or not 1 <= index_OK.shape[1] <= inputs:
            raise ValueError(f"index is {tuple(index_OK.shape)}, but the weight is {(outputs, inputs)}")
        if int(index_OK.min()) < -1 or int(index_OK.max()) >= inputs:
            raise ValueError(f"index has columns outside 0..{inputs - 1}")
        device = self.weight.device
        index_OK, real_OK = filled(index_OK.to(device=device, dtype=torch.int32))
        self.register_buffer("index", index_OK)
        self.register_buffer("real", real_OK)
        self.register_buffer("base_values", self._base_values(index_OK))
        self.delta = nn.Parameter(torch.zeros(index_OK.shape, dtype=torch.float32, device=device))

    def _base_values(self, index_OK: Tensor) -> Tensor:
        return take_entries(self.weight.detach(), index_OK, self.layout)

    def token(self) -> Tensor:
        """What a product of the watched weight depends on, so that `delta` gets what `add` is given."""
        if self._made_token is None or self._made_token[0] is not self.delta:
            self._sums_OK = None
            made = cast(Tensor, _Token.apply(self.delta, self))  # type: ignore[no-untyped-call]
            self._made_token = (self.delta, made)
        return self._made_token[1]

    def add(self, rows: slice, sampled_OK: Tensor) -> None:
        """Add to the gradient of some neurons' deltas, in a backward pass."""
        if self._sums_OK is None:
            self._sums_OK = torch.zeros(self.index.shape, dtype=torch.float32, device=sampled_OK.device)
        self._sums_OK[rows] += sampled_OK

    def take_sums(self) -> Tensor | None:
        """The gradient of `delta`, at the end of a backward pass."""
        sums_OK, self._sums_OK, self._made_token = self._sums_OK, None, None
        return sums_OK if sums_OK is None or self.real is None else sums_OK.mul_(self.real)

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins without a graph."""
        return {**self.__dict__, "_made_token": None, "_sums_OK": None}

    @torch.no_grad()
    def reindex(self, index_OU: Tensor, trains_OU: Tensor) -> None:
        """Hold deltas at other places: at least where one is not 0 now. The caller brings `delta` along.

        index_OU   int32, rows ending in -1 where they are shorter
        trains_OU  bool: which of them get a gradient
        """
        index_OU, _ = filled(index_OU)
        was = self.weight.detach().clone(memory_format=torch.contiguous_format)
        write_entries(was, self.index, self.base_values, self.layout)
        self.index, self.real = index_OU, trains_OU
        self.base_values = self.layout.take(was, index_OU)

    @property
    def weight_OI(self) -> Tensor:
        """The weight with neurons as rows (`Layout.rows`)."""
        return self.layout.rows(self.weight.detach())

    @torch.no_grad()
    def refold(self) -> None:
        """Rewrite the K entries per row to round(base + delta); call after every change of delta."""
        fold_all([self.to_fold()])

    def to_fold(self) -> Fold:
        """What `fold_all` takes of it."""
        return self.weight, self.index, self.base_values, self.delta, self.layout

    @torch.no_grad()
    def restore(self) -> None:
        """Put the frozen entries back; the weight is then bit-identical to the base. delta is kept."""
        write_entries(self.weight, self.index, self.base_values, self.layout)

    def extra_repr(self) -> str:
        (outputs, inputs), k = self.layout.shape, self.index.shape[1]
        return f"in_features={inputs}, out_features={outputs}, k={k}"


class DeltaLinear(DeltaLayer):
    """A linear layer (nn.Linear, or GPT-2's Conv1D) with K trainable connections per output neuron.

    It takes the place of a module that does nothing else, and is quicker than watching its weight.
    """

    def __init__(self, base: nn.Module, layout: Layout) -> None:
        super().__init__(layout)
        # in a list, so that the original is kept for detaching but is no submodule (names stay the base's)
        self._base = [base]
        self.weight = cast(nn.Parameter, base.weight)
        self.bias = cast(nn.Parameter | None, base.bias)
        self.out_features, self.in_features = layout.shape
        self.train(base.training)

    @classmethod
    def from_base(cls, base: nn.Module, index_OK: Tensor) -> DeltaLinear:
        """Wrap `base`, whose weight is used as it is (not copied). delta starts at 0: outputs stay equal.

        Raises ValueError when the module is no linear layer or the index does not fit its weight.
        """
        if not (isinstance(base, nn.Linear) or is_conv1d(base)):
            raise ValueError(f"{type(base).__name__} is not a linear layer")
        base.weight.requires_grad_(False)
        layer = cls(base, layout_of(base))
        layer._own_deltas(index_OK)
        return layer

    @property
    def base(self) -> nn.Module:
        return self._base[0]

    def effective_OI(self, weight: Tensor | None) -> Tensor:
        """The weight that the forward used, neurons as rows; `weight` is what forward saved."""
        assert weight is not None
        return self.layout.rows(weight)

    def state(self, weight: Tensor | None) -> tuple[int, Tensor | None]:
        """By what folding is noticed: numbers that differ, or another tensor."""
        assert weight is not None
        with torch._C.DisableTorchFunctionSubclass():
            return weight._version, None

    def plain_forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The same kernel that the base module calls, so that outputs are equal to the last bit."""
        assert weight is not None
        if not self.layout.transposed:
            return F.linear(x, weight, bias)
        flat_TI = x.reshape(-1, x.shape[-1])
        y_TO = flat_TI @ weight if bias is None else torch.addmm(bias, flat_TI, weight)
        return y_TO.view(*x.shape[:-1], self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self._folded_linear(x, self.weight)
        with torch._C.DisableTorchFunctionSubclass():  # the weight may be watched
            return self.plain_forward(x, self.weight, self.bias)

    def _folded_linear(self, x: Tensor, weight: Tensor | None) -> Tensor:
        y = _FoldedLinear.apply(x, self.delta, self, weight, self.bias)  # type: ignore[no-untyped-call]
        return cast(Tensor, y)


class DeltaWeight(DeltaLayer):
    """K trainable connections per neuron of a weight whose own module computes with it in its own way.

    It lies beside that weight, in the module that owns it (`owner`), as `<attribute>_deltas`.
    """

    def __init__(self, owner: nn.Module, attribute: str, layout: Layout, index_OK: Tensor) -> None:
        super().__init__(layout)
        # in a list, so that the owner does not become a part of what is a part of it
        self._owner, self.attribute = [owner], attribute
        self._own_deltas(index_OK)

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        return cast(nn.Parameter, getattr(self._owner[0], self.attribute))
