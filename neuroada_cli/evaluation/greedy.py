"""Which models the most likely continuations can be written for by `writer`, and not by their library."""

from __future__ import annotations

import inspect
from typing import Any

# lengths of rows in a batch change what these compute: frequencies are chosen by the longest
BY_LENGTH = ("dynamic", "longrope")
CACHE = ("past_key_values", "cache")  # what models call it, the latter from transformers 5.24 on


def can_leave(model: Any) -> bool:
    """Whether rows of this model can leave a batch: it decodes as its library has it, over a cache of keys
    and values and nothing else, and what it computes of a row depends on that row alone.
    """
    from transformers import DynamicCache, GenerationMixin
    from transformers.cache_utils import DynamicLayer

    plain = isinstance(model, GenerationMixin) and all(
        getattr(type(model), name) is getattr(GenerationMixin, name)
        for name in ("generate", "prepare_inputs_for_generation")
    )
    if not plain or model.config.is_encoder_decoder:
        return False
    rope = str(getattr(model.config.get_text_config(decoder=True), "rope_parameters", ""))
    layers = DynamicCache(config=model.config).layers
    taken = set(inspect.signature(model.forward).parameters)
    return (
        {"position_ids", "attention_mask"} <= taken
        and not taken.isdisjoint(CACHE)
        and bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
        and not any(kind in rope for kind in BY_LENGTH)
    )
