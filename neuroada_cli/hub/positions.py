"""How many tokens a model takes."""

from __future__ import annotations

from typing import Any

from torch import nn


def positions_of(model: Any) -> int | None:
    """Tokens of a row at most, of a model or its module graph; None where it sets no bound.

    A config states none by leaving it out, or by -1 (XLNet). T5's `n_positions` bounds nothing, for it has no
    table of positions. LED's encoder and decoder have bounds of their own; this is the encoder's.
    """
    tables = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and ("position" in name or "wpe" in name)
    }
    config = model.config.get_text_config()
    limit = _bound(config, "max_position_embeddings") or _bound(config, "max_encoder_position_embeddings")
    if limit is None:
        stated = _bound(config, "n_positions")
        limit = stated if any(table.num_embeddings == stated for table in tables.values()) else None
    for name, table in tables.items():
        # RoBERTa's positions start behind the padding token's, so it takes fewer than its config says
        if limit is not None and "position" in name and table.padding_idx is not None:
            limit = min(limit, table.num_embeddings - table.padding_idx - 1)
    return limit


def answer_positions_of(model: Any) -> int | None:
    """Tokens of an answer at most, of an encoder-decoder or its module graph, with the one that it begins
    with; None where it sets no bound.
    """
    return _bound(model.config, "max_decoder_position_embeddings") or positions_of(model)


def _bound(config: Any, key: str) -> int | None:
    stated = getattr(config, key, None)
    return stated if isinstance(stated, int) and stated > 0 else None
