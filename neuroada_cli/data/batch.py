"""From encoded rows to batches: padding, masks and labels, and the order of an epoch.

B = rows of a batch, S = sequence length
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from neuroada_cli.data.images import Picture
from neuroada_cli.errors import DataError
from neuroada_cli.hub.padding import reads_padding

IGNORED = -100  # the label of a token that is not learnt (the convention of torch and transformers)
WORTH = 64  # tokens that a head computed once has to save: it takes a pass through the model of its own
MEGA_BATCHES = 50  # rows are sorted by length within so many batches, so that order stays random at large


@dataclass(frozen=True)
class Example:
    """One row as a task means it.

    prompt    what the model is given
    target    what it learns to write, without the end token; empty for classification
    answer    the reference that scoring compares with (text, class number or real score)
    row       its number in the source, 0 is the first
    pair      the second text of a sentence pair
    pictures  of the row, opened when they are needed (of a task's own example: as the row has them)
    rendered  a chat template wrote prompt and target, with all their special tokens
    lead      what of target stands before the answer, such as an empty thought; end: what stands behind it
    learnt    parts of the prompt (characters from, to; ascending) that are learnt too: earlier turns
    apart     earlier turns that the template writes otherwise in this text: each is learnt as its own row
    """

    prompt: str
    target: str
    answer: str | int | float
    row: int
    pair: str | None = None
    pictures: tuple[Any, ...] = ()
    rendered: bool = False
    lead: str = ""
    end: str = ""
    learnt: tuple[tuple[int, int], ...] = ()
    apart: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """Token ids of a row; labels are per token, or one class number or score for the whole row.

    prompt   how many of the tokens are prompt; None: all (there is nothing to generate)
    decoder  of an encoder-decoder, whose encoder gets input_ids: the start token and the answer; labels are
             of these tokens then
    pictures the row's, opened again for every batch, since their pixels would fill the memory;
             seen: sha256 of each;  asked: the prompt that they stand in
    told     what the model's processor says of every token, by the names that the model takes
    cut      of a row of classes or scores: it is longer than this
    """

    input_ids: list[int]
    labels: list[int] | int | float
    row: int
    type_ids: list[int] | None = None
    prompt: int | None = None
    decoder: list[int] | None = None
    pictures: tuple[Picture, ...] = ()
    seen: tuple[str, ...] = ()
    asked: str | None = None
    told: dict[str, list[int]] = field(default_factory=dict)
    cut: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Batch:
    """tokens, attention int64 [B, S], right-padded; labels int64 [B, S], or [B] (int64 or fp32).

    prompts_B     int64: tokens of each row's prompt; None: all of a row is prompt
    positions_BS  int64: of a packed batch, where all rows lie in one (B = 1): each token's place in its own
    decoder_BS, decoder_attention_BS   int64, of an encoder-decoder: its decoder's tokens, one per label
    features      what the model's processor made of pictures and tokens, by the names that the model takes
    places_N      int64, of a batch that was brought to a device: where a target is predicted, row after row,
                  as places in [B x S]; known before, so that the device is not waited for
    head_1H       int64: what all rows begin with and learn nothing of, computed once; tokens and labels are
                  of what follows it, attention [B, H + S] is of both
    """

    tokens_BS: Tensor
    attention_BS: Tensor
    labels_BS: Tensor
    rows: list[int]
    types_BS: Tensor | None = None
    prompts_B: Tensor | None = None
    positions_BS: Tensor | None = None
    decoder_BS: Tensor | None = None
    decoder_attention_BS: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    places_N: Tensor | None = None
    head_1H: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many there are, without padding."""
        decoder = 0 if self.decoder_attention_BS is None else int(self.decoder_attention_BS.sum())
        return int(self.attention_BS.sum()) + decoder

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device. What goes to CUDA is sent without waiting for what is at work there."""
        cuda = torch.device(device).type == "cuda"
        here = self.with_places() if cuda and self.labels_BS.device.type == "cpu" else self
        tensors = {n: _moved(v, device, cuda) for n, v in vars(here).items() if isinstance(v, Tensor)}
        features = {name: _moved(value, device, cuda) for name, value in here.features.items()}
        return replace(here, **tensors, features=features)  # type: ignore[arg-type]

    def with_places(self) -> Batch:
        """`places_N` worked out, where labels are per token."""
        if self.labels_BS.ndim != 2:
            return self
        wanted_BS = torch.zeros_like(self.labels_BS, dtype=torch.bool)
        wanted_BS[:, :-1] = self.labels_BS[:, 1:] != IGNORED
        return replace(self, places_N=wanted_BS.flatten().nonzero()[:, 0])


def _moved(tensor: Tensor, device: torch.device | str, cuda: bool) -> Tensor:
    if cuda and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def pad_id(tokenizer: Any) -> int:
    """unk, else the tokenizer's own pad, else eos. Padding is masked, so no embedding has to be added.

    Raises DataError when there is none of the three.
    """
    for name in ("unk_token_id", "pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    raise DataError("the tokenizer has neither a pad, an unknown nor an end token", fix="set its pad_token")


def align_padding(model: Any, tokenizer: Any) -> int:
    """The padding id for a row classifier; its config gets one if it lacks it and the model asks for it.

    Decoders find a row's last token by comparing with config.pad_token_id, and RoBERTa's positions start
    behind it, so here the model's own id goes before `pad_id`.
    """
    config = model.config.get_text_config()
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    pad = pad_id(tokenizer)
    if reads_padding(model):
        config.pad_token_id = pad
    return pad


# rows -> what the model is given of their pictures
Features = Callable[[Sequence[Encoded]], dict[str, Tensor]]


def collate(rows: Sequence[Encoded], pad: int, features: Features | None = None) -> Batch:
    """Right-pad rows to the longest of them."""
    tokens_BS, attention_BS = _padded([row.input_ids for row in rows], pad)
    per_token = [row.labels for row in rows if isinstance(row.labels, list)]
    if per_token:
        labels_BS = _padded(per_token, IGNORED)[0]
    else:
        labels_BS = torch.tensor([row.labels for row in rows])  # int64 classes or fp32 scores, [B]
    types = [row.type_ids for row in rows if row.type_ids is not None]
    lengths = [row.prompt for row in rows if row.prompt is not None]
    decoders = [row.decoder for row in rows if row.decoder is not None]
    decoder_BS, decoder_attention_BS = _padded(decoders, pad) if decoders else (None, None)
    return Batch(
        tokens_BS,
        attention_BS,
        labels_BS,
        [row.row for row in rows],
        _padded(types, 0)[0] if types else None,
        torch.tensor(lengths) if len(lengths) == len(rows) else None,
        decoder_BS=decoder_BS,
        decoder_attention_BS=decoder_attention_BS,
        features={**told_of(rows), **({} if features is None else features(rows))},
    )


def unpadded(rows: Sequence[Encoded], pad: int, features: Features | None, most: int) -> Iterator[Batch]:
    """Batches of the rows that have a target, without padding: of rows of one length, of which `most` may
    share one; a row with pictures, of which there may be more in another, has its own.
    """
    alike: dict[tuple[int, ...], list[Encoded]] = {}
    for number, row in enumerate(rows):
        if isinstance(row.labels, list) and not any(label != IGNORED for label in row.labels[1:]):
            continue
        key = (len(row), len(row.decoder or ()), number if row.pictures and row.input_ids else -1)
        alike.setdefault(key, []).append(row)
    for group in alike.values():
        for start in range(0, len(group), most):
            yield collate(group[start : start + most], pad, features)


def with_head(batch: Batch, least: int = WORTH) -> Batch:
    """The tokens that all rows begin with set apart, where they are at least `least` of all rows together.

    The last of them predicts nothing either: what stands behind it differs.
    """
    tokens_BS, labels_BS = batch.tokens_BS, batch.labels_BS
    if (
        len(batch.rows) < 2
        or batch.positions_BS is not None
        or batch.decoder_BS is not None
        or batch.features
    ):
        return batch
    same_S = (tokens_BS == tokens_BS[:1]).all(0) & batch.attention_BS.bool().all(0)
    idle_S = (labels_BS[:, 1:] == IGNORED).all(0)
    shared = int((same_S[:-1] & idle_S).long().cumprod(0).sum())
    if shared * (len(tokens_BS) - 1) < least:
        return batch
    return replace(
        batch,
        tokens_BS=tokens_BS[:, shared:],
        labels_BS=labels_BS[:, shared:],
        head_1H=tokens_BS[:1, :shared],
    )


def told_of(rows: Sequence[Encoded], left: bool = False) -> dict[str, Tensor]:
    """What is told of every token, int64 [B, S] by name, 0 for padding (which is on the right, or `left`)."""
    length = max(map(len, rows))
    found: dict[str, Tensor] = {}
    for name in rows[0].told:
        found[name] = torch.zeros((len(rows), length), dtype=torch.int64)
        for at, row in enumerate(rows):
            place = slice(length - len(row), length) if left else slice(0, len(row))
            found[name][at, place] = torch.tensor(row.told[name], dtype=torch.int64)
    return found


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(int64 [B, S], right-padded to the longest row; 1 where a row has a number)."""
    length = max(map(len, rows))
    values_BS = torch.full((len(rows), length), pad, dtype=torch.int64)
    real_BS = torch.zeros((len(rows), length), dtype=torch.int64)
    for i, row in enumerate(rows):
        values_BS[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        real_BS[i, : len(row)] = 1
    return values_BS, real_BS


def pack(rows: Sequence[Encoded]) -> Batch:
    """Rows of tokens one behind the other, without padding: [1, sum of lengths].

    Positions start anew with every row; by them a model keeps the rows apart. The first token of a row is
    never a target, since what stands before it belongs to another row.
    """
    tokens = [token for row in rows for token in row.input_ids]
    positions = [position for row in rows for position in range(len(row))]
    labels = [label for row in rows if isinstance(row.labels, list) for label in [IGNORED, *row.labels[1:]]]
    tokens_BS = torch.tensor([tokens])
    return Batch(
        tokens_BS,
        torch.ones_like(tokens_BS),
        torch.tensor([labels]),
        [row.row for row in rows],
        positions_BS=torch.tensor([positions]),
    )


def epoch_order(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, group_by_length: bool = True
) -> list[list[int]]:
    """Row numbers of every batch of an epoch: a pure function of its arguments, so that a run can resume.

    With grouping, rows of similar length share a batch (less padding) and the longest batch of an epoch
    comes first, where running out of memory costs least.
    """
    chance = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(len(lengths), generator=chance).tolist()
    if not group_by_length:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches: list[list[int]] = []
    mega = batch_size * MEGA_BATCHES
    for start in range(0, len(order), mega):
        by_length = sorted(order[start : start + mega], key=lambda i: -lengths[i])
        batches += [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    longest = max(range(len(batches)), key=lambda b: lengths[batches[b][0]]) if batches else 0
    shuffled = [b for b in torch.randperm(len(batches), generator=chance).tolist() if b != longest]
    return [batches[b] for b in [longest, *shuffled]] if batches else []


def share_of(share: float, count: int) -> int:
    """So many of `count`, a part rounded up, of the share as it is written: 0.07 of 100 are 7, though the
    product of the two floats is a little more, and 1.1 of 100 are 110.
    """
    return math.ceil(Fraction(str(share)) * count)


def listed(rows: Sequence[int]) -> str:
    """Row numbers as a message shows them: "4, 5, 6", of many only the first."""
    shown = ", ".join(str(row) for row in rows[:8])
    return f"{shown} and {len(rows) - 8} more" if len(rows) > 8 else shown
