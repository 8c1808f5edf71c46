"""Whether a model sees the words that it is to write: tried once, before training on them.

S = tokens of a row
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from neuroada_cli.data.batch import IGNORED, Batch, Encoded, Features, collate
from neuroada_cli.errors import ModelError
from neuroada_cli.loop.loss import token_loss
from neuroada_cli.loop.modes import evaluating

# of the loss. A causal model's is the same to the last bit, but for a mixture's experts, which work on all
# tokens at once, so that others change their roundings.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@torch.no_grad()
def check_causality(model: nn.Module, row: Encoded, pad: int, features: Features | None = None) -> None:
    """The losses up to a token must not change when the token does, of the first and of the last one learnt.

    Some models read a text in both directions, whatever their class (XLNet), or do where nothing tells them
    what is asked and what is answered (PaliGemma): trained like that, one would copy what it cannot know.
    Raises ModelError for these. Does nothing for a row with a class or a score.
    """
    if not isinstance(row.labels, list):
        return
    learnt = [place for place, label in enumerate(row.labels) if place and label != IGNORED]
    some = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    tolerance = TOLERANCE.get(some.dtype, 0)
    with evaluating(model):
        for place in {*learnt[:1], *learnt[-1:]}:
            labels = [label if at <= place else IGNORED for at, label in enumerate(row.labels)]
            batch = collate([replace(row, labels=labels)], pad, features).to(some.device)
            before, count = token_loss(model, batch)
            after, _ = token_loss(model, _with_another_token(batch, place, learnt))
            change = abs(float(after) - float(before))
            if change > tolerance * abs(float(before)):
                raise ModelError(
                    f"sees the words that it is to write: the loss up to a token changes by "
                    f"{change / max(1, count):.2g} with it",
                    type(model).__name__,
                    "choose a model that writes from left to right, or the kind of rows it is made for",
                )


def _with_another_token(batch: Batch, place: int, learnt: list[int]) -> Batch:
    """The same labels, and at `place` another token: one that is learnt, so that a model knows it."""
    own_BS = batch.tokens_BS if batch.decoder_BS is None else batch.decoder_BS
    token = int(own_BS[0, place])
    others = [known for at in learnt if (known := int(own_BS[0, at])) != token]
    changed_BS = own_BS.clone()
    changed_BS[0, place] = others[0] if others else max(0, token - 1)
    if batch.decoder_BS is None:
        return replace(batch, tokens_BS=changed_BS)
    return replace(batch, decoder_BS=changed_BS)
