"""Products of a weight with activations whose backward pass makes the sampled gradient of its deltas.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens, E = experts,
S = (token, expert) pairs, R, C = rows and columns of the matrix as it is used

    linear   y = x G^T + b        right   y = x G        left   y = G x

with one matrix G [R, C], one for every entry of a batch, or one for every span of rows (`grouped_mm`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from neuroada_cli.delta.sampled_grad import sampled_grad


@dataclass(frozen=True)
class Product:
    """func     what the model called
    kind     "linear", "right" or "left"
    weight   as it was used;  view  what it is of its layer's weight (`trained_weight.View`)
    offsets  of a grouped product: where the rows of each expert end, int32 [E]
    """

    func: Callable[..., Any]
    kind: str
    weight: Tensor
    view: Any
    offsets: Tensor | None = None

    def run(self, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Any:
        if self.offsets is not None:
            return self.func(x, matrix, offs=self.offsets)
        if self.kind == "linear":
            return self.func(x, matrix, bias)
        if self.kind == "left":
            return self.func(matrix, x)
        return self.func(x, matrix) if bias is None else self.func(bias, x, matrix)

    def matrix(self, weight: Tensor) -> Tensor:
        """G: of picked experts a copy for each, as the model makes one."""
        if self.view.picked is None:
            return weight
        root: Tensor = self.view.deltas.weight.detach()[self.view.picked]
        return root.transpose(-1, -2) if self.view.flipped else root

    def grad_x(self, grad: Tensor, matrix: Tensor) -> Tensor:
        if self.offsets is not None:
            made = self.func(grad.contiguous(), matrix.transpose(-1, -2), offs=self.offsets)
            return cast(Tensor, made)
        if self.kind == "linear":
            return grad @ matrix
        turned = matrix.transpose(-1, -2)
        return grad @ turned if self.kind == "right" else turned @ grad

    def sampled(self, grad: Tensor, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(which neurons, their sampled gradient [O, K])."""
        layer, outputs = self.view.deltas, self.view.deltas.layout.outputs
        if self.kind == "left":
            grad, x = grad.transpose(-1, -2), x.transpose(-1, -2)
        # of y = x G^T the rows of G are what comes out, of y = x G its columns
        out_is_neurons = self.view.neurons_are_rows == (self.kind != "right")
        for expert, grad_T, x_T in self._by_expert(grad, x):
            rows = slice(expert * outputs, (expert + 1) * outputs)
            over_O, over_I = (grad_T, x_T) if out_is_neurons else (x_T, grad_T)
            yield rows, sampled_grad(over_O, over_I, layer.index[rows], layer.backend)

    def _by_expert(self, grad: Tensor, x: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(expert, gradient of its outputs [T, ·], its inputs [T, ·]), without those that got no token."""
        view = self.view
        if view.picked is None and self.weight.ndim == 2:
            yield view.expert or 0, _flat(grad), _flat(x)
            return
        if view.picked is None and self.offsets is None:
            for expert, (one_grad, one_x) in enumerate(zip(grad, x, strict=True)):
                yield expert, one_grad, one_x
            return
        ends = self.offsets
        if ends is None:
            picked_S = view.picked
            order_S = picked_S.argsort(stable=True)
            grad, x = _flat(grad)[order_S], _flat(x)[order_S]
            ends = picked_S.bincount(minlength=view.deltas.layout.experts).cumsum(0)
        start = 0
        for expert, end in enumerate(_numbers(ends, len(x))):
            if end > start:
                yield expert, grad[start:end], x[start:end]
            start = end


def _numbers(ends_E: Tensor, pairs: int) -> list[int]:
    """Where each expert's rows end. A tensor without numbers stands for experts that get as many each."""
    if type(ends_E).__name__ == "FakeTensor":
        return [pairs * (expert + 1) // len(ends_E) for expert in range(len(ends_E))]
    found: list[int] = ends_E.tolist()
    return found


def run_product(product: Product, x: Tensor, bias: Tensor | None) -> Tensor:
    """The product as the model asked for it, with deltas in its graph."""
    token = product.view.deltas.token()
    return cast(Tensor, _Run.apply(x, bias, product.weight, token, product))  # type: ignore[no-untyped-call]


def without_view(made: Tensor) -> Tensor:
    """A function's result that a model may change in place: not a view made inside the function."""
    return made.data if made._is_view() else made


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, weight: Tensor, token: Tensor, product: Product
    ) -> Tensor:
        ctx.product = product
        ctx.bias_like = None if bias is None else (bias.shape, bias.dtype)
        ctx.save_for_backward(x, weight)
        with torch._C.DisableTorchFunctionSubclass():
            return without_view(product.run(x, product.matrix(weight), bias))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        product: Product = ctx.product
        grad_x = grad_bias = None
        with torch._C.DisableTorchFunctionSubclass():
            if ctx.needs_input_grad[0]:
                grad_x = product.grad_x(grad, product.matrix(weight)).to(x.dtype)
            if ctx.needs_input_grad[1]:
                shape, dtype = ctx.bias_like
                grad_bias = grad.float().sum_to_size(shape).to(dtype)
            if ctx.needs_input_grad[3]:
                for rows, sampled_OK in product.sampled(grad, x):
                    product.view.deltas.add(rows, sampled_OK)
        return grad_x, grad_bias, None, torch.zeros((), device=grad.device), None


def run_embedding(view: Any, tokens: Tensor, weight_VI: Tensor, padding: int | None) -> Tensor:
    """Rows by token id: a table that is tied to an adapted head."""
    rows = _Rows.apply(tokens, weight_VI, view.deltas.token(), view.deltas, padding)  # type: ignore[no-untyped-call]
    return cast(Tensor, rows)


class _Rows(torch.autograd.Function):
    """The gradient of delta is each token's gradient at its row's K columns."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, weight_VI: Tensor, token: Tensor, layer: Any, padding: int | None
    ) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.layer, ctx.padding = layer, padding
        with torch._C.DisableTorchFunctionSubclass():
            return F.embedding(tokens, weight_VI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, None, None]:
        (grad,) = grads
        (tokens,) = ctx.saved_tensors
        index_VK = ctx.layer.index
        token_T, grad_TI = tokens.reshape(-1), _flat(grad)
        if ctx.padding is not None:  # nn.Embedding gives its padding row no gradient
            kept = token_T != ctx.padding % len(index_VK)
            token_T, grad_TI = token_T[kept], grad_TI[kept]
        sampled_TK = grad_TI.float().gather(1, index_VK[token_T].long())
        summed_VK = torch.zeros(index_VK.shape, dtype=torch.float32, device=grad.device)
        ctx.layer.add(slice(0, len(index_VK)), summed_VK.index_add_(0, token_T, sampled_TK))
        return None, None, torch.zeros((), device=grad.device), None, None


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
