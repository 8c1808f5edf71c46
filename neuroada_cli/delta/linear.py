"""Layers with K trainable connections per output neuron, folded into the frozen weight.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens (batch x sequence), V = vocabulary

    y_o = sum_i W_oi x_i + sum_k delta_ok x_{index_ok}          (NeuroAda eq. 2, arXiv:2510.18940)

The weight in memory is already round(W + delta), so the forward is one plain `F.linear`; `base_values` keeps
the K original entries per row, `delta` is the fp32 master, and `refold` rewrites those K entries after each
optimizer step. What trains is exactly what is shipped.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuroada_cli.delta.fold import fold_entries, write_entries
from neuroada_cli.delta.index import filled
from neuroada_cli.delta.layout import Layout, is_conv1d, layout_of
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
        return layer.plain_forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, Tensor | None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        layer: DeltaLinear = ctx.layer
        grad_TO = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_delta_OK = grad_bias_O = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ layer.effective_OI(weight).to(grad.dtype)).to(ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            x_TI = x.reshape(-1, x.shape[-1])
            grad_delta_OK = sampled_grad(grad_TO, x_TI, layer.index, layer.backend)
            if layer.real is not None:
                grad_delta_OK.mul_(layer.real)
        if ctx.needs_input_grad[4]:
            grad_bias_O = grad_TO.float().sum(dim=0).to(grad.dtype)
        return grad_x, grad_delta_OK, None, None, grad_bias_O


class _FoldedEmbedding(torch.autograd.Function):
    """Rows of W' by token id; the gradient of delta is each token's gradient at its row's K columns."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        delta_VK: Tensor,
        weight_VI: Tensor,
        index_VK: Tensor,
        real_VK: Tensor | None,
        padding: int | None,
    ) -> Tensor:
        ctx.save_for_backward(tokens, index_VK, real_VK)
        ctx.padding = padding
        return F.embedding(tokens, weight_VI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None, None, None]:
        (grad,) = grads
        tokens, index_VK, real_VK = ctx.saved_tensors
        token_T = tokens.reshape(-1)
        grad_TI = grad.reshape(-1, grad.shape[-1])
        if ctx.padding is not None:  # nn.Embedding gives its padding row no gradient
            kept = token_T != ctx.padding
            token_T, grad_TI = token_T[kept], grad_TI[kept]
        sampled_TK = grad_TI.float().gather(1, index_VK[token_T].long())
        grad_delta_VK = torch.zeros(index_VK.shape, dtype=torch.float32, device=grad.device)
        grad_delta_VK.index_add_(0, token_T, sampled_TK)
        if real_VK is not None:
            grad_delta_VK.mul_(real_VK)
        return None, grad_delta_VK, None, None, None, None


class DeltaLayer(nn.Module):
    """What both kinds of layer share: the weight with deltas folded in, and how to fold and restore.

    index        int32 [O, K], ascending columns per row
    real         bool [O, K]: which of them train, where not all do (else None); the others get no gradient:
                 place holders where rows differ in length, and deltas that rest after a new selection
    base_values  [O, K] in the weight's dtype: the frozen entries that the folded ones replaced
    delta        fp32 [O, K], the trainable part
    """

    weight: nn.Parameter
    index: Tensor
    real: Tensor | None
    base_values: Tensor
    delta: nn.Parameter

    def __init__(self, base: nn.Module, layout: Layout) -> None:
        super().__init__()
        # in a list, so that the original is kept for detaching but is no submodule (names stay the base's)
        self._base = [base]
        self.layout = layout
        self.shares_deltas = False  # True for every user of a tied weight but the one that was targeted
        self.weight = cast(nn.Parameter, base.weight)
        self.train(base.training)

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
        self.register_buffer("base_values", self.weight_OI.detach().gather(1, index_OK.long()))
        self.delta = nn.Parameter(torch.zeros(index_OK.shape, dtype=torch.float32, device=device))

    def _share_deltas(self, owner: DeltaLayer) -> None:
        self.shares_deltas = True
        self.follow(owner)

    def follow(self, owner: DeltaLayer) -> None:
        """Take over the index and the deltas of the layer that this one shares its weight with."""
        self.delta = owner.delta
        self.register_buffer("index", owner.index)
        self.register_buffer("real", owner.real)
        self.register_buffer("base_values", owner.base_values)

    @torch.no_grad()
    def reindex(self, index_OU: Tensor, trains_OU: Tensor) -> None:
        """Hold deltas at other places: at least where one is not 0 now. The caller brings `delta` along.

        index_OU   int32, rows ending in -1 where they are shorter
        trains_OU  bool: which of them get a gradient
        """
        index_OU, _ = filled(index_OU)
        was_OI = self.weight_OI.detach().clone(memory_format=torch.contiguous_format)
        write_entries(was_OI, self.index, self.base_values, Layout(*self.layout.shape))
        self.index, self.real = index_OU, trains_OU
        self.base_values = was_OI.gather(1, index_OU.long())

    @property
    def base(self) -> nn.Module:
        return self._base[0]

    @property
    def weight_OI(self) -> Tensor:
        """The weight with neurons as rows (a view for GPT-2's Conv1D)."""
        return self.layout.rows(self.weight)

    @torch.no_grad()
    def refold(self) -> None:
        """Rewrite the K entries per row to round(base + delta); call after every change of delta."""
        folded_OK = fold_entries(self.base_values, self.delta, self.weight.dtype)
        write_entries(self.weight, self.index, folded_OK, self.layout)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the frozen entries back; the weight is then bit-identical to the base. delta is kept."""
        write_entries(self.weight, self.index, self.base_values, self.layout)

    def extra_repr(self) -> str:
        (outputs, inputs), k = self.layout.shape, self.index.shape[1]
        return f"in_features={inputs}, out_features={outputs}, k={k}"


class DeltaLinear(DeltaLayer):
    """A linear layer (nn.Linear, or GPT-2's Conv1D) with K trainable connections per output neuron.

    backend  name of a sampled-gradient back-end, or None for the measured choice
    """

    def __init__(self, base: nn.Module, layout: Layout) -> None:
        super().__init__(base, layout)
        self.bias = cast(nn.Parameter | None, base.bias)
        self.out_features, self.in_features = layout.shape
        self.backend: str | None = None

    @classmethod
    def from_base(cls, base: nn.Module, index_OK: Tensor) -> DeltaLinear:
        """Wrap `base`, whose weight is used as it is (not copied). delta starts at 0: outputs stay equal.

        Raises ValueError when the module is no linear layer or the index does not fit its weight.
        """
        layer = cls._wrap(base)
        layer._own_deltas(index_OK)
        return layer

    @classmethod
    def sharing(cls, base: nn.Module, owner: DeltaLayer) -> DeltaLinear:
        """Wrap a module whose weight is tied to `owner`'s: one selection, one delta for both."""
        layer = cls._wrap(base)
        layer._share_deltas(owner)
        return layer

    @classmethod
    def _wrap(cls, base: nn.Module) -> DeltaLinear:
        if not (isinstance(base, nn.Linear) or is_conv1d(base)):
            raise ValueError(f"{type(base).__name__} is not a linear layer")
        base.weight.requires_grad_(False)
        return cls(base, layout_of(base))

    def effective_OI(self, weight: Tensor | None) -> Tensor:
        """The weight that the forward used, neurons as rows; `weight` is what forward saved."""
        assert weight is not None
        return self.layout.rows(weight)

    def plain_forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The same kernel that the base module calls, so that outputs are equal to the last bit."""
        assert weight is not None
        if not self.layout.transposed:
            return F.linear(x, weight, bias)
        flat_TI = x.reshape(-1, x.shape[-1])
        y_TO = flat_TI @ weight if bias is None else torch.addmm(bias, flat_TI, weight)
        return y_TO.view(*x.shape[:-1], self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self._folded_linear(x, self.weight)

    def _folded_linear(self, x: Tensor, weight: Tensor | None) -> Tensor:
        y = _FoldedLinear.apply(x, self.delta, self, weight, self.bias)  # type: ignore[no-untyped-call]
        return cast(Tensor, y)


class DeltaEmbedding(DeltaLayer):
    """An embedding whose table is tied to an adapted linear layer (a targeted lm_head): same deltas."""

    def __init__(self, base: nn.Embedding, owner: DeltaLayer) -> None:
        super().__init__(base, Layout(*base.weight.shape))
        self.padding_idx = base.padding_idx
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self._share_deltas(owner)

    def forward(self, tokens: Tensor) -> Tensor:
        y = _FoldedEmbedding.apply(  # type: ignore[no-untyped-call]
            tokens, self.delta, self.weight, self.index, self.real, self.padding_idx
        )
        return cast(Tensor, y)
