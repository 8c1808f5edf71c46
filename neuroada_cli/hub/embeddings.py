"""Which tokens a model knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from neuroada_cli.errors import ModelError

MEND = "put the model's own tokenizer there"


def known_tokens(model: Any) -> int | None:
    """How many tokens there are embeddings for; None of a model that has no such table."""
    with suppress(NotImplementedError, AttributeError):
        return int(model.get_input_embeddings().weight.shape[0])
    return None


def refuse_unknown(
    model: Any, rows: Iterable[tuple[int | None, Sequence[int]]], where: str | None = None
) -> None:
    """Raises ModelError for a token that the model has no embedding for: the tokenizer is another model's.

    model  or its module graph
    rows   (its number for readers, its tokens)
    """
    known = known_tokens(model)
    for number, tokens in rows:
        highest = max(tokens, default=0)
        if known is not None and highest >= known:
            whose = "a prompt" if number is None else f"row {number}"
            raise ModelError(
                f"the tokenizer gives {whose} token {highest}, but the model has {known} embeddings",
                where or None,
                MEND,
            )
