"""Rows of pictures and text, as a model reads them that writes about pictures.

The model's own processor writes the prompt's tokens, with as many places as each picture takes; the answer's
tokens go on behind them, as they do when the model writes them itself. Pixels are made a batch at a time
(`data.seen` says why), of each row by itself, so that they do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuroada_cli.data.batch import IGNORED, Encoded, Example, Features
from neuroada_cli.data.encoding import (
    EncodeReport,
    TooLong,
    end_ids,
    end_texts,
    is_no_more_than,
    refuse_without_answer,
)
from neuroada_cli.data.images import content_hash, explained, opened
from neuroada_cli.data.seams import Coder
from neuroada_cli.data.seen import pixels
from neuroada_cli.errors import DataError

PROCESSOR = "the model's processor"
TEXT = ("input_ids", "attention_mask", "labels")
PER_TOKEN = "token_type_ids"  # ends the names of what a processor says of every token
# what it says of an answer; not 0, the kind of text, where that means what is asked and read both ways
OF_ANSWERS = {"PaliGemmaProcessor": 1}


def encode_image_text(
    examples: Sequence[Example],
    processor: Any,
    max_length: int,
    loss_on_prompt: bool = False,
    too_long: TooLong = "refuse",
) -> tuple[list[Encoded], EncodeReport]:
    """The rows, every picture opened, and what encoding did to them.

    max_length  tokens per row, the places of its pictures included
    too_long    refuse, cut: the answer's end is cut off; a prompt that fills max_length by itself stops the
                run, since a picture cannot be shortened; drop: longer rows are left out
    Raises DataError for no rows at all, rows without an answer, pictures that cannot be used (counted), and
    what the processor refuses; ModelError for a tokenizer that cannot end a text.
    """
    if not examples:
        raise DataError("there are no rows", fix="check data.train and data.limit")
    ends, coder = end_ids(processor.tokenizer), Coder(processor.tokenizer)
    marks = end_texts(processor.tokenizer)
    empty = [e.row for e in examples if not e.target.strip() or is_no_more_than(marks, str(e.answer))]
    refuse_without_answer(empty, len(examples))
    prompts = encode_prompts(examples, processor)
    kind = OF_ANSWERS.get(type(processor).__name__, 0)
    made: list[tuple[Encoded, bool]] = []
    for example, prompt in zip(examples, prompts, strict=True):
        answer = coder.going_on(example.target)
        if not answer or answer[-1] not in ends:
            answer.append(int(processor.tokenizer.eos_token_id))
        ids = prompt.input_ids + answer
        labels = ids if loss_on_prompt else [IGNORED] * len(prompt) + answer
        told = {name: values + [kind] * len(answer) for name, values in prompt.told.items()}
        row = replace(
            prompt, input_ids=ids[:max_length], labels=labels[:max_length], told=_cut(told, max_length)
        )
        made.append((row, len(ids) > max_length))
    if too_long == "drop":
        made = [each for each in made if not each[1]]
    if not made:
        raise DataError(
            f"all {len(examples)} rows are longer than data.max_length={max_length}", fix="raise it"
        )
    rows = [row for row, _ in made]
    if barren := [row for row in rows if len(row) <= (row.prompt or 0)]:
        raise DataError(
            f"{len(barren)} of {len(rows)} rows have nothing to learn within data.max_length={max_length}: "
            f"their pictures and prompt fill it (the first is row {barren[0].row})",
            fix="raise data.max_length, or set data.too_long: drop",
        )
    return rows, EncodeReport(
        rows=len(rows),
        tokens=sum(map(len, rows)),
        targets=sum(label != IGNORED for row in rows for label in row.labels[1:]),  # type: ignore[index]
        truncated=sum(cut for _, cut in made),
        longest=max(map(len, rows)),
        dropped=len(examples) - len(rows),
    )


def encode_prompts(examples: Sequence[Example], processor: Any) -> list[Encoded]:
    """The tokens that a model is asked with; labels are empty. Raises DataError as above."""
    hashes: list[list[str]] = [[] for _ in examples]
    rows: list[Encoded | None] = [None] * len(examples)
    shown: list[list[Any]] = [[] for _ in examples]
    owners = [at for at, example in enumerate(examples) for _ in example.pictures]

    def note(number: int, picture: Any, data: bytes) -> None:
        at = owners[number]
        hashes[at].append(content_hash(data))
        shown[at].append(picture)
        if len(shown[at]) == len(examples[at].pictures):  # no more of them than one row's stay in memory
            rows[at] = _asked(examples[at], processor, shown[at], tuple(hashes[at]))
            shown[at] = []

    for at, example in enumerate(examples):
        if not example.pictures:
            rows[at] = _asked(example, processor, [], ())
    opened([picture for example in examples for picture in example.pictures], note)
    return [row for row in rows if row is not None]


def _asked(example: Example, processor: Any, pictures: list[Any], hashes: tuple[str, ...]) -> Encoded:
    found = _processed(processor, example.prompt, pictures, tensors=None)
    ids = list(found["input_ids"][0])
    if (
        len(ids) > 1
        and ids[-1] == processor.tokenizer.eos_token_id
        and not example.prompt.endswith(str(processor.tokenizer.eos_token))
    ):
        ids = ids[:-1]  # a tokenizer that ends every text; what is asked goes on
    told = {name: list(found[name][0])[: len(ids)] for name in found if name.endswith(PER_TOKEN)}
    return Encoded(
        ids,
        [],
        example.row,
        prompt=len(ids),
        pictures=example.pictures,
        seen=hashes,
        told=told,
        asked=example.prompt,
    )


def _processed(processor: Any, prompt: str, pictures: list[Any], tensors: str | None) -> dict[str, Any]:
    """What the processor makes of one prompt. A chat template may have written the start token itself."""
    bos = processor.tokenizer.bos_token
    special = not (bos and prompt.startswith(bos))
    with explained(PROCESSOR):
        images = {"images": [pictures]} if pictures else {}
        return dict(processor(text=[prompt], add_special_tokens=special, return_tensors=tensors, **images))


def features_of_rows(processor: Any) -> Features:
    """What turns the pictures of rows into a model's inputs."""

    def features(rows: Sequence[Encoded]) -> dict[str, Tensor]:
        made: dict[str, list[Tensor]] = {}
        for row in rows:
            if not row.pictures:
                continue
            found = _processed(processor, str(row.asked), pixels(row), tensors="pt")
            for name, value in found.items():
                if name not in TEXT and not name.endswith(PER_TOKEN):
                    made.setdefault(name, []).append(value)
        return {name: joined(values) for name, values in made.items()}

    return features


def joined(values: Sequence[Tensor]) -> Tensor:
    """Rows' pixels in one tensor, along the first size; where others differ (more pictures or crops in one
    row), filled up with zeros, as processors do for a batch.
    """
    sizes = [max(value.shape[size] for value in values) for size in range(1, values[0].ndim)]
    filled = []
    for value in values:
        missing = [wanted - here for wanted, here in zip(sizes, value.shape[1:], strict=True)]
        filled.append(
            F.pad(value, [n for gap in reversed(missing) for n in (0, gap)]) if any(missing) else value
        )
    return torch.cat(filled)


def _cut(told: dict[str, list[int]], length: int) -> dict[str, list[int]]:
    return {name: values[:length] for name, values in told.items()}
