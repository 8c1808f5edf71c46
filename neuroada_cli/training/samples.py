"""What the model writes at each evaluation: the same few validation rows, asked again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from neuroada_cli.data.batch import Encoded
from neuroada_cli.data.encoding import without_turn_end
from neuroada_cli.errors import DataError
from neuroada_cli.evaluation.streaming import answer
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.tasks.asking import asking
from neuroada_cli.training.preflight import Checked

TOKENS = 64  # of an answer, where the recipe does not say
BEGINNING = 8  # tokens that a row without a prompt is begun with
SHOWN = 400  # characters of a prompt's end that are kept


@dataclass(frozen=True)
class Sample:
    """row     of the validation rows
    prompt     its end
    answer     what the model writes, the likeliest token each time; ended: the model ended it
    reference  what the row says
    """

    row: int
    prompt: str
    answer: str
    reference: str
    ended: bool


Sampler = Callable[[], list[Sample]]


def why_none(checked: Checked, ranks: Ranks = ALONE) -> str | None:
    """Why `eval.samples` has no effect in a run; None where it has, or is not asked for."""
    if not checked.recipe.eval.samples:
        return None
    if checked.rows.data.kind != "generation":
        return f"{checked.task.name} writes nothing"
    if not checked.rows.data.validation:
        return "there are no validation rows"
    if checked.rows.data.features is not None:
        return "rows with pictures are not asked while training"
    return "the model stands in parts" if ranks.sharded else None


def sampler(checked: Checked, model: nn.Module, ranks: Ranks = ALONE) -> Sampler | None:
    """What asks the first `eval.samples` validation rows; None where that has no effect."""
    count = checked.recipe.eval.samples
    if not count or why_none(checked, ranks) is not None:
        return None
    rows, tokenizer = checked.rows.data.validation[:count], checked.reader.tokenizer
    most, end = checked.recipe.eval.max_new_tokens or TOKENS, asking(checked.recipe, tokenizer).end
    return lambda: [found for row in rows if (found := _asked(model, tokenizer, row, most, end)) is not None]


def _asked(model: nn.Module, tokenizer: Any, row: Encoded, most: int, end: str) -> Sample | None:
    """None for a prompt that leaves no room."""
    prompt, reference = _parted(row)
    try:
        found = answer(model, tokenizer, prompt, most, turn_end=end)
    except DataError:
        return None
    said = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt, reference)]
    return Sample(row.row, said[0][-SHOWN:], found.text, without_turn_end(said[1], end), found.ended)


def _parted(row: Encoded) -> tuple[list[int], list[int]]:
    """(what is asked, what follows it) in tokens."""
    if row.decoder is not None:
        return row.input_ids, row.decoder
    begin = row.prompt if row.prompt is not None and row.prompt > 1 else min(BEGINNING, len(row) // 2)
    return row.input_ids[:begin], row.input_ids[begin:]
