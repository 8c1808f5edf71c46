"""Whether what the rows of a batch begin with can be computed once: tried before training on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli.data.batch import IGNORED, Batch, Encoded, collate, with_head
from neuroada_cli.errors import ModelError
from neuroada_cli.evaluation.greedy import keeps_only_keys
from neuroada_cli.loop.caches import takes_any_mask
from neuroada_cli.loop.loss import token_loss
from neuroada_cli.loop.modes import evaluating, set_training

FIX = "set train.share_prefix: false"
DRAWN = " at random, which rows with one prefix would have to share"
TRIED_TOKENS = 32
# of the loss, between rows by themselves and behind one head: other shapes, so other roundings
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


@torch.no_grad()
def check_heads(model: nn.Module, rows: Sequence[Encoded], pad: int) -> None:
    """Raises ModelError for a model to which a head that is computed once is not the same: one that keeps
    more than keys and values, that draws at random in training (rows would share it), or whose loss differs.
    """
    what = type(model).__name__
    if not (keeps_only_keys(model) and takes_any_mask(model)):
        raise ModelError(
            "keeps more of a text than keys and values, or has attention that takes no mask of its own, so "
            "a prefix cannot be computed once",
            what,
            FIX,
        )
    if drops(model):
        raise ModelError(f"drops entries{DRAWN}", what, FIX)
    first = replace(rows[0], input_ids=rows[0].input_ids[:TRIED_TOKENS])
    tokens = first.input_ids
    if len(tokens) < 4:
        return
    labels = [IGNORED] * (len(tokens) - 2) + tokens[-2:]
    short = replace(first, labels=labels)
    other = replace(short, input_ids=[*tokens[:-2], tokens[0], tokens[1]], labels=[*labels[:-2], *tokens[:2]])
    some = next(p for p in model.parameters() if p.is_floating_point())
    batch = collate([short, other], pad).to(some.device)
    with evaluating(model):
        alone, _ = token_loss(model, batch)
        shared, _ = token_loss(model, with_head(batch, 1))
    differs = abs(float(shared) - float(alone))
    if not differs <= TOLERANCE.get(some.dtype, 0) * abs(float(alone)):
        raise ModelError(
            f"reads a text otherwise behind a prefix computed once: the loss differs by {differs:.2g}",
            what,
            FIX,
        )
    if draws(model, batch):
        raise ModelError(f"routes tokens{DRAWN}", what, FIX)


def draws(model: nn.Module, batch: Batch) -> bool:
    """Whether a forward pass in training takes numbers of torch's streams, whatever for: PhiMoE's routers
    draw which experts they ask.
    """
    devices = [batch.tokens_BS.device] if batch.tokens_BS.device.type == "cuda" else []

    def states() -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]

    with torch.random.fork_rng(devices), evaluating(model):  # which puts everything back
        before = states()
        set_training(model)
        try:
            token_loss(model, batch)
        finally:
            model.eval()
        return not all(map(torch.equal, before, states()))


def drops(model: Any) -> bool:
    """Whether the model in training sets entries to zero at random."""
    layers = any(isinstance(each, nn.Dropout) and each.p > 0 for each in model.modules())
    stated = model.config.get_text_config(decoder=True).to_dict().items()
    unused = ("summary", "classifier")  # of heads that a model which writes text has not
    named = [value for key, value in stated if "drop" in key and not key.startswith(unused)]
    return layers or any(isinstance(value, float) and value > 0 for value in named)
