"""Rows of an encoder-decoder: the prompt for its encoder, the answer for its decoder.

    encoder   the prompt as the tokenizer marks it (T5: "… </s>", BART: "<s> … </s>")
    decoder   start t1 … tn          labels   -    t1 … tn end
                    …  end                    (of the decoder's tokens, the first is never predicted)

The start token is the config's `decoder_start_token_id`: the decoder learns each token from those before it,
as `shift_tokens_right` of transformers has it, and from the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuroada_cli.data.batch import IGNORED, Encoded, Example
from neuroada_cli.data.encoding import (
    FEW,
    NOTHING_LEFT,
    EncodeReport,
    TooLong,
    end_ids,
    end_texts,
    is_no_more_than,
    refuse_without_answer,
)
from neuroada_cli.data.seams import Coder
from neuroada_cli.errors import DataError


def encode_pairs(
    examples: Sequence[Example], tokenizer: Any, max_length: int, start: int, too_long: TooLong = "refuse"
) -> tuple[list[Encoded], EncodeReport]:
    """The rows, and what encoding did to them.

    max_length  tokens of a prompt, and tokens of an answer with its end
    start       the decoder's first token
    too_long    what becomes of longer rows. refuse: an answer's end is cut off, and a longer prompt stops the
                run; cut: the beginning of the prompt goes, too; drop: they are left out
    Raises DataError for no rows at all, rows without an answer or without a prompt (whose encoder would have
    nothing to read), and what too_long refuses or leaves nothing of; ModelError for a tokenizer that cannot
    end a text.
    """
    if not examples:
        raise DataError("there are no rows", fix="check data.train and data.limit")
    ends, coder = end_texts(tokenizer), Coder(tokenizer)
    ids, unknown = end_ids(tokenizer), tokenizer.unk_token_id

    def is_empty(example: Example) -> bool:
        """Whatever a template leaves of it, or the tokenizer drops of it."""
        answer = str(example.answer)
        short = len(answer) <= FEW
        return is_no_more_than(ends, answer) or (short and is_no_more_than(ends, coder.as_written(answer)))

    refuse_without_answer([e.row for e in examples if not e.target.strip() or is_empty(e)], len(examples))
    if empty := [example.row for example in examples if not example.prompt.strip()]:
        raise DataError(
            f"{len(empty)} of {len(examples)} rows have no prompt, and an encoder-decoder answers one (the "
            f"first is row {empty[0]})",
            fix="use rows of prompt and answer, or a model that goes on with a text",
        )
    made = [_encoded(example, tokenizer, max_length, start) for example in examples]
    long = [row for row, prompt_cut, _ in made if prompt_cut]
    if long and too_long == "refuse":
        raise DataError(
            f"{len(long)} of {len(made)} rows have a prompt of more than data.max_length={max_length} tokens "
            f"(the first is row {long[0].row})",
            fix="raise data.max_length, or set data.too_long: drop (or cut)",
        )
    kept = [each for each in made if too_long != "drop" or not (each[1] or each[2])]
    if not kept:
        raise DataError(
            f"all {len(made)} rows are longer than data.max_length={max_length}", fix=NOTHING_LEFT
        )
    rows = [row for row, _, _ in kept]
    return rows, EncodeReport(
        rows=len(rows),
        tokens=sum(len(row) + len(row.decoder or ()) for row in rows),
        targets=sum(len(row.decoder or ()) - 1 for row in rows),
        truncated=sum(answer_cut for *_, answer_cut in kept),
        longest=max(map(len, rows)),
        longest_answer=max(len(row.decoder or ()) for row in rows),
        shortened=sum(prompt_cut for _, prompt_cut, _ in kept),
        dropped=len(made) - len(kept),
        ended=sum(not ids.isdisjoint((row.decoder or [])[1:-1]) for row in rows),
        unknown=sum(unknown in (row.decoder or [])[1:] for row in rows),
    )


def front(tokenizer: Any) -> list[int]:
    """The tokens that are learnt in front of every answer: a start (BART), a language (mBART), none (T5)."""
    whole = list(tokenizer(text_target="a", verbose=False)["input_ids"])
    plain = list(tokenizer(text_target="a", add_special_tokens=False, verbose=False)["input_ids"])
    places = range(len(whole) - len(plain) + 1)
    return whole[: next((n for n in places if whole[n : n + len(plain)] == plain), 0)]


def asked(tokenizer: Any, prompt: str, max_length: int | None = None) -> tuple[list[int], bool]:
    """(the encoder's tokens, whether the text's beginning was left out): its marks stay on both sides."""
    ids = list(tokenizer(prompt, verbose=False)["input_ids"])
    if max_length is None or len(ids) <= max_length:
        return ids, False
    plain = list(tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
    before = next((n for n in range(len(ids) - len(plain) + 1) if ids[n : n + len(plain)] == plain), 0)
    return ids[:before] + ids[len(ids) - (max_length - before) :], True


def _encoded(example: Example, tokenizer: Any, max_length: int, start: int) -> tuple[Encoded, bool, bool]:
    """(row, whether its prompt was cut, whether its answer was)."""
    prompt, prompt_cut = asked(tokenizer, example.prompt, max_length)
    answer = list(tokenizer(text_target=example.target, verbose=False)["input_ids"])
    if answer[-1:] != [tokenizer.eos_token_id]:
        answer.append(tokenizer.eos_token_id)
    answer_cut = len(answer) > max_length
    answer = answer[:max_length]
    row = Encoded(prompt, [IGNORED, *answer], example.row, decoder=[start, *answer])
    return row, prompt_cut, answer_cut
