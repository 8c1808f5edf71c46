"""Who works on which batch: ranks take turns, and where they hold the model together, they keep in step.

B = rows, S = sequence length
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from neuroada_cli.data.batch import Batch
from neuroada_cli.loop.loss import count_targets
from neuroada_cli.ranks.group import Ranks


@dataclass(frozen=True)
class Turn:
    """A forward that this rank runs. counts: whether its loss does; own: whether it was dealt a batch."""

    batch: Batch
    counts: bool = True
    own: bool = True


def turns(batches: Iterable[Batch], ranks: Ranks) -> Iterator[Turn]:
    """This rank's share of the batches: every `size`-th.

    Where each rank holds its own rows of the model, a forward needs all of them: then every rank runs as many
    as the others, also without a batch, or without anything to learn in it.
    """
    if not ranks.sharded:
        yield from (Turn(b) for n, b in enumerate(batches) if n % ranks.size == ranks.number)
        return
    own: Batch | None = None
    spare: Batch | None = None
    place = -1
    for number, batch in enumerate(batches):
        place = number % ranks.size
        spare = spare if spare is not None else idle(batch)
        own = batch if place == ranks.number else own
        if place == ranks.size - 1:
            yield _turn(own, spare)
            own = None
    if spare is not None and place != ranks.size - 1:
        yield _turn(own, spare)


def _turn(own: Batch | None, spare: Batch) -> Turn:
    if own is not None and count_targets(own.labels_BS):
        return Turn(own)
    return Turn(spare, counts=False, own=own is not None)


def idle(batch: Batch) -> Batch:
    """Something to run that goes through all parts of the model that the batch does, and has a target.

    It costs next to nothing: one row of two tokens, the second of them a target, and as many for a decoder.
    What is told of pictures does not part into rows, so there it is the whole batch.
    """
    if batch.features:
        labels_BS = batch.labels_BS
        if not count_targets(labels_BS):
            labels_BS = labels_BS.clone()
            labels_BS[0, -1] = 0  # any token will do: its loss does not count
        return replace(batch, labels_BS=labels_BS, rows=[])
    tokens_BS = batch.tokens_BS[:1, :1].expand(1, 2).contiguous()
    pair = batch.decoder_BS is not None
    return Batch(
        tokens_BS,
        torch.ones_like(tokens_BS),
        tokens_BS if batch.labels_BS.ndim == 2 else batch.labels_BS[:1],
        [],
        types_BS=None if batch.types_BS is None else torch.zeros_like(tokens_BS),
        positions_BS=None if batch.positions_BS is None else torch.arange(2)[None].to(tokens_BS),
        decoder_BS=tokens_BS if pair else None,
        decoder_attention_BS=torch.ones_like(tokens_BS) if pair else None,
    )
