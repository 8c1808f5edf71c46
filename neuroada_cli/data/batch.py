"""From examples to batches: tokens, masks and labels.

B = rows of a batch, S = sequence length

The loss mask follows the papers' code: prompt and target are tokenised together, the prompt is tokenised by
itself only to find how many tokens of the whole it is, and those are not learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from rich.text import Text
from torch import Tensor

from neuroada_cli.errors import DataError
from neuroada_cli.foreign_text import printable

IGNORED = -100  # the label of a token that is not learnt (the convention of torch and transformers)
MEGA_BATCHES = 50  # rows are sorted by length within so many batches, so that order stays random at large


@dataclass(frozen=True)
class Example:
    """One row as a task means it.

    prompt  what the model is given
    target  what it learns to write, without the end token; empty for classification
    answer  the reference that scoring compares with (text, class number or real score)
    row     its number in the source, 0 is the first
    pair    the second text of a sentence pair
    """

    prompt: str
    target: str
    answer: str | int | float
    row: int
    pair: str | None = None


@dataclass(frozen=True)
class Encoded:
    """Token ids of a row; labels are per token, or one class number or score for the whole row.

    prompt  how many of the tokens are prompt; None: all (there is nothing to generate)
    """

    input_ids: list[int]
    labels: list[int] | int | float
    row: int
    type_ids: list[int] | None = None
    prompt: int | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class EncodeReport:
    """What encoding did: rows, all tokens, learnt tokens, and rows whose end was cut off."""

    rows: int
    tokens: int
    targets: int
    truncated: int
    longest: int


@dataclass(frozen=True)
class Batch:
    """tokens, attention int64 [B, S], right-padded; labels int64 [B, S], or [B] (int64 or fp32).

    prompts_B     int64: tokens of each row's prompt; None: all of a row is prompt
    positions_BS  int64: of a packed batch, where all rows lie in one (B = 1): each token's place in its own
    """

    tokens_BS: Tensor
    attention_BS: Tensor
    labels_BS: Tensor
    rows: list[int]
    types_BS: Tensor | None = None
    prompts_B: Tensor | None = None
    positions_BS: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)  # type: ignore[arg-type]


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
    """The padding id for a row classifier; its config gets one if it lacks it.

    Decoders find a row's last token by comparing with config.pad_token_id, and RoBERTa's positions start
    behind it, so here the model's own id goes before `pad_id`.
    """
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = pad_id(tokenizer)
    return int(config.pad_token_id)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The prompt's tokens as the model gets them: one BOS where the tokenizer adds one, no EOS."""
    bos = getattr(tokenizer, "bos_token", None)
    special = not (bos and text.startswith(bos))  # a chat template writes its own
    ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    if special and len(ids) > 1 and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        ids.pop()
    return ids


def encode(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    kind: str = "generation",
    loss_on_prompt: bool = False,
) -> tuple[list[Encoded], EncodeReport]:
    """Encode rows for training or validation.

    max_length      tokens per row; what is longer is cut at its end and counted
    kind            generation, classification or regression
    loss_on_prompt  learn the prompt's tokens, too (protocol `llm-adapters`)
    Raises DataError for no rows at all, a tokenizer without an end token, and rows whose prompt alone fills
    max_length: they would have no answer to learn, whatever is learnt of the prompt.
    """
    if not examples:
        raise DataError("there are no rows", fix="check data.train and data.limit")
    if kind == "generation":
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end token, so no answer could end", fix="set its eos_token")
        _refuse_without_answer(examples)
        pairs = [_encode_target(e, tokenizer, max_length, loss_on_prompt) for e in examples]
    else:
        pairs = [_encode_label(e, tokenizer, max_length, kind) for e in examples]
    rows = [row for row, _ in pairs]
    if kind == "generation":
        _refuse_without_target(rows, max_length)
    targets = sum(
        sum(label != IGNORED for label in row.labels[1:]) if isinstance(row.labels, list) else 1
        for row in rows
    )
    report = EncodeReport(
        rows=len(rows),
        tokens=sum(map(len, rows)),
        targets=targets,
        truncated=sum(cut for _, cut in pairs),
        longest=max(map(len, rows)),
    )
    return rows, report


def _encode_target(
    example: Example, tokenizer: Any, max_length: int, loss_on_prompt: bool
) -> tuple[Encoded, bool]:
    ids = token_ids(tokenizer, example.prompt + example.target)
    if ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    prompt = len(token_ids(tokenizer, example.prompt))
    cut = len(ids) > max_length
    ids = ids[:max_length]
    unlearnt = 0 if loss_on_prompt else prompt
    labels = [IGNORED] * min(unlearnt, len(ids)) + ids[unlearnt:]
    return Encoded(ids, labels, example.row, prompt=min(prompt, len(ids))), cut


def _encode_label(example: Example, tokenizer: Any, max_length: int, kind: str) -> tuple[Encoded, bool]:
    whole = tokenizer(example.prompt, example.pair, verbose=False)
    cut = len(whole["input_ids"]) > max_length
    # cutting is the tokenizer's: it shortens the longer text and keeps the end markers
    encoded = (
        tokenizer(example.prompt, example.pair, truncation=True, max_length=max_length) if cut else whole
    )
    label = float(example.answer) if kind == "regression" else int(example.answer)
    return Encoded(list(encoded["input_ids"]), label, example.row, encoded.get("token_type_ids")), cut


def _refuse_without_answer(examples: Sequence[Example]) -> None:
    empty = [example.row for example in examples if not example.target.strip()]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(examples)} rows have no answer to learn (the first is row {empty[0]})",
            fix="fill their answers in, or drop these rows",
        )


def _refuse_without_target(rows: Sequence[Encoded], max_length: int) -> None:
    barren = [row for row in rows if isinstance(row.labels, list) and not _has_answer(row, row.labels)]
    if barren:
        first = barren[0].row
        raise DataError(
            f"{len(barren)} of {len(rows)} rows have nothing to learn within data.max_length={max_length}: "
            f"their prompt alone fills it (the first is row {first})",
            fix="raise data.max_length, or drop these rows",
        )


def _has_answer(row: Encoded, labels: Sequence[int]) -> bool:
    """Whether a token is left that is learnt and no prompt; the first of a row is never predicted."""
    prompt = 1 if row.prompt is None else max(1, row.prompt)
    return any(label != IGNORED for label in labels[prompt:])


def collate(rows: Sequence[Encoded], pad: int) -> Batch:
    """Right-pad rows to the longest of them."""
    length = max(map(len, rows))
    tokens_BS = torch.full((len(rows), length), pad, dtype=torch.int64)
    attention_BS = torch.zeros((len(rows), length), dtype=torch.int64)
    per_token = isinstance(rows[0].labels, list)
    labels_BS = torch.full((len(rows), length), IGNORED, dtype=torch.int64)
    types_BS = torch.zeros((len(rows), length), dtype=torch.int64) if rows[0].type_ids is not None else None
    for i, row in enumerate(rows):
        tokens_BS[i, : len(row)] = torch.tensor(row.input_ids)
        attention_BS[i, : len(row)] = 1
        if per_token:
            labels_BS[i, : len(row)] = torch.tensor(row.labels)
        if types_BS is not None and row.type_ids is not None:
            types_BS[i, : len(row)] = torch.tensor(row.type_ids)
    if not per_token:
        labels_BS = torch.tensor([row.labels for row in rows])  # int64 classes or fp32 scores, [B]
    lengths = [row.prompt for row in rows if row.prompt is not None]
    prompts_B = torch.tensor(lengths) if len(lengths) == len(rows) else None
    return Batch(tokens_BS, attention_BS, labels_BS, [row.row for row in rows], types_BS, prompts_B)


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


def listed(rows: Sequence[int]) -> str:
    """Row numbers as a message shows them: "4, 5, 6", of many only the first."""
    shown = ", ".join(str(row) for row in rows[:8])
    return f"{shown} and {len(rows) - 8} more" if len(rows) > 8 else shown


def preview(row: Encoded, tokenizer: Any) -> Text:
    """A row as the model sees it: tokens that are learnt stand out, the rest is dim; \\n is shown as ↵."""
    text = Text()
    labels = row.labels if isinstance(row.labels, list) else [IGNORED] * len(row)
    # runs, not single tokens: one character may be several tokens
    for ignored, run in groupby(zip(row.input_ids, labels, strict=True), lambda pair: pair[1] == IGNORED):
        piece = printable(tokenizer.decode([token for token, _ in run]), keep="\n\t").replace("\n", "↵\n")
        text.append(piece, style="dim" if ignored else "bold black on bright_green")
    return text
