"""What is to be said of model and rows before training: whatever is not as a person would take it to be."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from neuroada_cli import hub
from neuroada_cli.data.encoding import EncodeReport
from neuroada_cli.hub.stored import main_dtype, rounded_by
from neuroada_cli.show.numbers import describe_dtype
from neuroada_cli.training.preflight import Checked
from neuroada_cli.training.settings import dtype_of

LONGER, SPACE = "raise data.max_length", "put the space between them before the answer"


def remarks(checked: Checked) -> Iterator[str]:
    """One line each."""
    trusted = checked.recipe.model.trust_remote_code
    yield from hub.ignored_of_model(checked.base.folder, trusted)
    if checked.reader.tokenizer is not None:
        yield from hub.ignored_of_tokenizer(checked.reader.tokenizer, trusted)
    if checked.task.kind == "generation":
        remark = hub.endings(checked.reader.tokenizer).remark
        if remark is not None:
            yield remark
    yield from _of_weights(checked)
    yield from checked.rows.notes
    for counts, what in (
        (checked.rows.train_report, "rows"),
        (checked.rows.validation_report, "validation rows"),
    ):
        if counts is not None:
            yield from _of_rows(checked, counts, what)


def _of_weights(checked: Checked) -> Iterator[str]:
    """What training does to the base before it begins."""
    wanted, own = dtype_of(checked.recipe), main_dtype(checked.base.weights)
    if torch.promote_types(own, wanted) == wanted:
        return
    changed, total = rounded_by(checked.base.weights, wanted)
    yield (
        f"model.dtype={checked.recipe.model.dtype} rounds the base, which is {describe_dtype(own)}: "
        f"{changed:,} of {total:,} numbers change, chosen or not; leave it out to keep them"
    )


def _of_rows(checked: Checked, counts: EncodeReport, what: str) -> Iterator[str]:
    limit, total = checked.rows.max_length, counts.rows + counts.dropped
    apart = (
        "the prompt's end and the answer's beginning share a token, which is not learnt (the rule of "
        f"protocol {checked.recipe.data.protocol})"
        if checked.rows.published
        else "the prompt's end and the answer's beginning would be one token, so they are tokenised apart"
    )
    known = (
        (counts.dropped, f"longer than {limit} tokens and left out", ""),
        (counts.shortened, f"without the beginning of their prompt, to fit into {limit} tokens", ""),
        (counts.truncated, f"cut at {limit} tokens, so that their end is never learnt", LONGER),
        (counts.seams, apart, "" if checked.rows.published else SPACE),
        (counts.ended, "an end token inside the answer, behind which nothing will be written", ""),
        (counts.unknown, "the unknown token is learnt, for characters that the tokenizer does not know", ""),
    )
    for count, line, fix in known:
        if count:
            yield f"{line}: {count:,} of {total:,} {what}{'; ' if fix else ''}{fix}"
