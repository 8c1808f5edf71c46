"""The cross entropy of a frozen output embedding, a slice of the vocabulary logits at a time.

N = targets, H = hidden size, V = vocabulary, C = targets in one slice

    loss = sum_n logsumexp(W h_n + b) - (W h_n + b)[target_n],    d loss / d h_n = (softmax - onehot) W

Logits [N, V] never stand in full, forward or backward: with a frozen W all that the backward pass needs is
d loss / d h [N, H], and that is made while a slice of logits is at hand. torch's own
`F.linear_cross_entropy` (from 2.13) also makes the gradient of W, and sums a bf16 model's loss in bf16.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Logits of one slice: enough to keep the processor busy, 64 MB of fp32 on the CPU.
SLICE_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 27}


def is_frozen_linear(head: nn.Module) -> bool:
    """Whether the slices apply: a plain linear layer, nothing of which trains."""
    return type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters(recurse=False))


def linear_cross_entropy(hidden_NH: Tensor, head: nn.Linear, targets_N: Tensor) -> Tensor:
    """-sum_n log softmax(W h_n + b)[target_n]: an fp32 scalar, differentiable in hidden alone.

    Logits are rounded to the head's data type and then widened, as the plain way does.
    """
    loss = _SlicedCrossEntropy.apply(hidden_NH, head.weight, head.bias, targets_N)  # type: ignore[no-untyped-call]
    return cast(Tensor, loss)


class _SlicedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor
    ) -> Tensor:
        size = max(1, SLICE_ELEMENTS.get(hidden_NH.device.type, 1 << 27) // weight_VH.shape[0])
        grad_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        for start in range(0, len(hidden_NH), size):
            here = slice(start, start + size)
            target_C1 = targets_N[here, None]
            logits_CV = F.linear(hidden_NH[here], weight_VH, bias_V).float()
            log_sum_C1 = logits_CV.logsumexp(dim=1, keepdim=True)
            loss += (log_sum_C1 - logits_CV.gather(1, target_C1)).sum()
            if grad_NH is not None:
                grad_CV = logits_CV.sub_(log_sum_C1).exp_()
                grad_CV.scatter_add_(1, target_C1, grad_CV.new_full((1, 1), -1.0).expand_as(target_C1))
                torch.mm(grad_CV.to(weight_VH.dtype), weight_VH, out=grad_NH[here])
        ctx.save_for_backward(grad_NH)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_NH,) = ctx.saved_tensors
        return grad_NH * grad.to(grad_NH.dtype), None, None, None
