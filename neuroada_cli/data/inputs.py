"""Rows as the model at hand reads them: what it is decides how they are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuroada_cli.data.batch import Encoded, Example, Features, align_padding, pad_id
from neuroada_cli.data.encoding import EncodeReport, RowSink, TooLong, Watch, encode, encode_into, prompt_ids
from neuroada_cli.data.image_text import encode_image_text, encode_prompts, features_of_rows
from neuroada_cli.data.kept import encoded_once
from neuroada_cli.data.pairs import asked, encode_pairs
from neuroada_cli.data.seen import encode_pictures, features_of
from neuroada_cli.hub.reader import Reader


def encode_for(
    reader: Reader,
    examples: Sequence[Example],
    max_length: int,
    kind: str = "generation",
    loss_on_prompt: bool = False,
    published: bool = False,
    too_long: TooLong = "refuse",
    watch: Watch | None = None,
) -> tuple[Sequence[Encoded], EncodeReport]:
    """Encode rows for training or validation of the model that `reader` belongs to: `encode`, `encode_pairs`.

    max_length  tokens per row (of an encoder-decoder: per prompt and per answer)
    watch       told how many rows of text more are done
    Many rows of text are kept, and not encoded again (`kept`); those of a streamed set stay there.
    Raises DataError and ModelError as they do.
    """
    if reader.pictures is not None:
        return encode_pictures(examples, reader.pictures, kind)
    if reader.processor is not None and any(example.pictures for example in examples):
        return encode_image_text(examples, reader.processor, max_length, loss_on_prompt, too_long)
    if reader.decoder_start is None or kind != "generation":
        if kind != "generation" or not examples:
            return encode(examples, reader.tokenizer, max_length, kind, too_long=too_long)
        settings = (max_length, loss_on_prompt, published, too_long)

        def make(rows: RowSink) -> EncodeReport:
            return encode_into(rows, examples, reader.tokenizer, *settings, watch)

        return encoded_once(examples, reader.tokenizer, settings, make)
    return encode_pairs(examples, reader.tokenizer, max_length, reader.decoder_start, too_long)


def prompts_for(reader: Reader, examples: Sequence[Example], published: bool = False) -> list[Encoded]:
    """What the model is asked with: rows without labels."""
    if reader.processor is not None and any(example.pictures for example in examples):
        return encode_prompts(examples, reader.processor)
    if reader.decoder_start is not None:
        found = [asked(reader.tokenizer, example.prompt)[0] for example in examples]
    else:
        found = prompt_ids(examples, reader.tokenizer, published)
    return [Encoded(ids, [], example.row) for example, ids in zip(examples, found, strict=True)]


def features_for(reader: Reader) -> Features | None:
    """What turns the pictures of rows into inputs; None for a model that is shown none."""
    if reader.processor is not None:
        return features_of_rows(reader.processor)
    return None if reader.pictures is None else features_of(reader.pictures)


def padding_for(reader: Reader) -> int:
    """The token that fills shorter rows; without tokens any number."""
    return 0 if reader.tokenizer is None else pad_id(reader.tokenizer)


def aligned_padding(model: Any, reader: Reader) -> int:
    """The same for a classifier of texts, which finds a row's end by it (`align_padding`)."""
    return 0 if reader.tokenizer is None else align_padding(model, reader.tokenizer)
