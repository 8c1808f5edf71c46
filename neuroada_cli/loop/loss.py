"""Summed losses: what the optimizer step divides by its target count.

B = rows, S = sequence length, N = targets, H = hidden size, V = vocabulary, C = classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuroada_cli.data.batch import IGNORED, Batch
from neuroada_cli.errors import ModelError
from neuroada_cli.loop.caches import cache_argument, few_logits
from neuroada_cli.loop.linear_cross_entropy import is_frozen_linear, linear_cross_entropy
from neuroada_cli.methods.loreft import tell_prompts

# (model, batch on the model's device) -> (summed loss: fp32 scalar with a graph, number of targets)
Loss = Callable[[nn.Module, Batch], tuple[Tensor, int]]


def count_targets(labels: Tensor) -> int:
    """Number of targets: tokens that are learnt (the first of a row has no predecessor), or rows."""
    return int((labels[:, 1:] != IGNORED).sum()) if labels.ndim == 2 else len(labels)


def token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """-sum log p(token | tokens before it) over the targets, in fp32.

    Logits are computed at the N target positions only: a hook hands the output embedding [1, N, H] instead
    of [B, S, H], so that what a model does to its logits afterwards (scaling, soft capping) still happens.
    Where it does nothing and the output embedding is frozen, they are computed a slice at a time instead.
    Raises ModelError when the model has no output embedding that its forward calls with one state per token.
    """
    wanted, targets_N = _targets(batch)
    if not len(targets_N):
        return torch.zeros((), device=batch.tokens_BS.device), 0
    head = model.get_output_embeddings()  # type: ignore[operator]
    if isinstance(head, nn.Embedding):  # FSMT looks tokens up in it, too
        logits_NV = _picked(model(use_cache=False, **inputs_of(model, batch)).logits, wanted)
        return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum"), len(targets_N)
    behind = head_of(model, batch)
    sliced = head is not None and is_frozen_linear(head) and logits_are_final(model, batch.tokens_BS)
    tell_prompts(model, batch.prompts_B)
    with _only_at(model, wanted, batch.labels_BS.shape, keep=sliced) as hidden:
        output = model(use_cache=bool(behind), **inputs_of(model, batch), **behind)
    if sliced:
        return linear_cross_entropy(hidden[0], head, targets_N), len(targets_N)
    logits_NV = output.logits[0]
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum"), len(targets_N)


def _targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """(where they are predicted, as `_only_at` takes it; the targets [N])."""
    if batch.places_N is not None:
        return batch.places_N, batch.labels_BS.flatten().index_select(0, batch.places_N + 1)
    wanted_BS = batch.labels_BS[:, 1:] != IGNORED
    return wanted_BS, batch.labels_BS[:, 1:][wanted_BS]


def _picked(states_BSX: Tensor, wanted: Tensor) -> Tensor:
    """[N, X] of hidden states or logits, at the places that `_only_at` takes."""
    if wanted.dtype == torch.bool:
        return states_BSX[:, :-1][wanted]
    return states_BSX.flatten(0, 1).index_select(0, wanted)


def inputs_of(model: nn.Module, batch: Batch) -> dict[str, Tensor | None]:
    """What a model is given: tokens with what tells which of them see each other, and pixels.

    Of an encoder-decoder also what its decoder gets, with a mask: some models take the padding token, which
    is how many answers begin, for padding.
    """
    given: dict[str, Tensor | None] = {}
    if batch.tokens_BS.shape[1]:  # a model that only looks reads none
        given = {"input_ids": batch.tokens_BS, **order_of(batch)}
    if batch.types_BS is not None:
        given["token_type_ids"] = batch.types_BS
    return {**given, **on_model(model, batch.features), **decoder_inputs(batch)}


def head_of(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What a model is given beside the tokens behind a head: the head's keys and values, computed once. They
    are every row's, so what the rows' losses ask of them is summed. Nothing for a batch without a head.
    """
    if batch.head_1H is None:
        return {}
    attention_1H, name = torch.ones_like(batch.head_1H), str(cache_argument(model))
    given = {"input_ids": batch.head_1H, "attention_mask": attention_1H, **few_logits(model, 1)}
    cache, count = getattr(model(use_cache=True, **given), name), len(batch.tokens_BS)
    for layer in cache.layers:
        layer.keys, layer.values = (each.expand(count, -1, -1, -1) for each in (layer.keys, layer.values))
    return {name: cache}


def on_model(model: nn.Module, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Features on the model's device; pixels in the type that it computes in."""
    some = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return {
        name: value.to(some.device, some.dtype if value.is_floating_point() else value.dtype)
        for name, value in features.items()
    }


def decoder_inputs(batch: Batch) -> dict[str, Tensor]:
    """What the decoder of an encoder-decoder is given; nothing for other models."""
    if batch.decoder_BS is None or batch.decoder_attention_BS is None:
        return {}
    return {"decoder_input_ids": batch.decoder_BS, "decoder_attention_mask": batch.decoder_attention_BS}


def order_of(batch: Batch) -> dict[str, Tensor | None]:
    """What tells a model which tokens see each other. Packed rows are told apart by their positions, which
    transformers looks at only where no mask is given.
    """
    if batch.positions_BS is None:
        return {"attention_mask": batch.attention_BS}
    return {"attention_mask": None, "position_ids": batch.positions_BS}


def logits_are_final(model: nn.Module, tokens_BS: Tensor, original: nn.Module | None = None) -> bool:
    """Whether the model hands out its output embedding's result untouched. Tried once, on one token.

    original  what the model is a copy of: one answer holds for all copies
    """
    asked = model if original is None else original
    if asked not in _FINAL:
        made: list[Tensor] = []
        head = model.get_output_embeddings()  # type: ignore[operator]
        handle = head.register_forward_hook(lambda _, __, logits: made.append(logits))
        cuda = [tokens_BS.device] if tokens_BS.device.type == "cuda" else []
        try:
            with torch.no_grad(), torch.random.fork_rng(cuda):  # dropout may not move the run's own stream
                one_11 = tokens_BS[:1, :1]
                begun = {"decoder_input_ids": one_11} if model.config.is_encoder_decoder else {}  # type: ignore[union-attr]
                logits = model(input_ids=one_11, use_cache=False, **begun).logits
        finally:
            handle.remove()
        _FINAL[asked] = len(made) == 1 and logits is made[0]
    return _FINAL[asked]


_FINAL: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@contextmanager
def _only_at(
    model: nn.Module, wanted: Tensor, shape: torch.Size, keep: bool = False
) -> Iterator[list[Tensor]]:
    """Inside, the output embedding sees only the hidden states that are wanted.

    wanted  bool [B, S-1], which a device has to count first, or int64 [N]: places in [B x S]
    shape   (B, S)
    keep    it sees just one of them, and all are put into the list that is yielded, as [N, H]
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ModelError("has no output embeddings, so it cannot predict tokens", type(model).__name__)
    calls = 0
    kept: list[Tensor] = []

    def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        hidden_BSH, *rest = args
        if (seen := hidden_BSH.shape[:-1]) != shape:
            raise ModelError(
                f"hands its output embeddings states of {tuple(seen)}, not one per row and token, so what it "
                "predicts at which place is not known",
                type(model).__name__,
            )
        hidden_NH = _picked(hidden_BSH, wanted)
        if keep:
            kept.append(hidden_NH)
            hidden_NH = hidden_NH[:1].detach()
        return (hidden_NH.unsqueeze(0), *rest)

    handle = head.register_forward_pre_hook(gather)
    try:
        yield kept
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
    """fp32 [B, C] of a classifier of texts or pictures; C is 1 for a regressor."""
    logits_BC: Tensor = model(**inputs_of(model, batch)).logits
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
