"""Summed losses: what the optimizer step divides by its target count.

B = rows, S = sequence length, N = targets, H = hidden size, V = vocabulary, C = classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuroada_cli.data.batch import IGNORED, Batch
from neuroada_cli.errors import ModelError

# (model, batch on the model's device) -> (summed loss: fp32 scalar with a graph, number of targets)
Loss = Callable[[nn.Module, Batch], tuple[Tensor, int]]


def count_targets(labels: Tensor) -> int:
    """Number of targets: tokens that are learnt (the first of a row has no predecessor), or rows."""
    return int((labels[:, 1:] != IGNORED).sum()) if labels.ndim == 2 else len(labels)


def token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """-sum log p(token | tokens before it) over the targets, in fp32.

    Logits are computed at the N target positions only: a hook hands the output embedding [1, N, H] instead
    of [B, S, H], so that what a model does to its logits afterwards (scaling, soft capping) still happens.
    Raises ModelError when the model has no output embedding that its forward calls.
    """
    wanted_BS = batch.labels_BS[:, 1:] != IGNORED
    targets_N = batch.labels_BS[:, 1:][wanted_BS]
    if not len(targets_N):
        return torch.zeros((), device=batch.tokens_BS.device), 0
    with _only_at(model, wanted_BS):
        output = model(input_ids=batch.tokens_BS, attention_mask=batch.attention_BS, use_cache=False)
    logits_NV = output.logits[0]
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum"), len(targets_N)


@contextmanager
def _only_at(model: nn.Module, wanted_BS: Tensor) -> Iterator[None]:
    """Inside, the output embedding sees only the hidden states marked in wanted [B, S-1]."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ModelError("has no output embeddings, so it cannot predict tokens", type(model).__name__)
    calls = 0

    def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        hidden_BSH, *rest = args
        return (hidden_BSH[:, :-1][wanted_BS].unsqueeze(0), *rest)

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()
    if calls != 1:
        raise ModelError(f"calls its output embeddings {calls} times per forward", type(model).__name__)


def class_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Cross entropy over the classes, summed over rows, in fp32."""
    return class_error(row_logits(model, batch), batch.labels_BS), len(batch.labels_BS)


def score_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Squared error of a single output, summed over rows, in fp32."""
    return score_error(row_logits(model, batch), batch.labels_BS), len(batch.labels_BS)


def row_logits(model: nn.Module, batch: Batch) -> Tensor:
    """fp32 [B, C] of a sequence classifier; C is 1 for a regressor."""
    types = {} if batch.types_BS is None else {"token_type_ids": batch.types_BS}
    output = model(input_ids=batch.tokens_BS, attention_mask=batch.attention_BS, **types)
    logits_BC: Tensor = output.logits
    return logits_BC.float()


def class_error(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    return F.cross_entropy(logits_BC, labels_B, reduction="sum")


def score_error(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    return F.mse_loss(logits_BC[:, 0], labels_B.float(), reduction="sum")


# by `data.tasks.Task.kind`
LOSSES: dict[str, Loss] = {
    "generation": token_loss,
    "classification": class_loss,
    "regression": score_loss,
}
