"""Rows as the model at hand reads them: what it is decides how they are encoded."""

from __future__ import annotations

from collections.abc import Sequence

from neuroada_cli.data.batch import Encoded, Example
from neuroada_cli.data.encoding import EncodeReport, TooLong, encode, prompt_ids
from neuroada_cli.data.pairs import asked, encode_pairs
from neuroada_cli.hub.reader import Reader


def encode_for(
    reader: Reader,
    examples: Sequence[Example],
    max_length: int,
    kind: str = "generation",
    loss_on_prompt: bool = False,
    published: bool = False,
    too_long: TooLong = "refuse",
) -> tuple[list[Encoded], EncodeReport]:
    """Encode rows for training or validation of the model that `reader` belongs to: `encode`, `encode_pairs`.

    max_length  tokens per row (of an encoder-decoder: per prompt and per answer)
    Raises DataError and ModelError as they do.
    """
    if reader.decoder_start is None or kind != "generation":
        return encode(examples, reader.tokenizer, max_length, kind, loss_on_prompt, published, too_long)
    return encode_pairs(examples, reader.tokenizer, max_length, reader.decoder_start, too_long)


def prompts_for(reader: Reader, examples: Sequence[Example], published: bool = False) -> list[list[int]]:
    """The tokens that the model is asked with."""
    if reader.decoder_start is None:
        return prompt_ids(examples, reader.tokenizer, published)
    return [asked(reader.tokenizer, example.prompt)[0] for example in examples]
