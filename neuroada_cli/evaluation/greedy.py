"""Which models the most likely continuations can be written for by `writer`, and not by their library."""

from __future__ import annotations

import inspect
from typing import Any

from neuroada_cli.loop.caches import cache_argument

# lengths of rows in a batch change what these compute: frequencies are chosen by the longest
BY_LENGTH = ("dynamic", "longrope")


def can_leave(model: Any) -> bool:
    """Whether rows of this model can leave a batch: it decodes as its library has it, over a cache of keys
    and values and nothing else, and what it computes of a row depends on that row alone.
    """
    from transformers import GenerationMixin

    plain = isinstance(model, GenerationMixin) and all(
        getattr(type(model), name) is getattr(GenerationMixin, name)
        for name in ("generate", "prepare_inputs_for_generation")
    )
    return plain and keeps_only_keys(model)


def keeps_only_keys(model: Any) -> bool:
    """Whether all that is kept is keys and values, and what comes of a row depends on that row alone."""
    from transformers import DynamicCache, PreTrainedModel
    from transformers.cache_utils import DynamicLayer

    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder:
        return False
    rope = str(getattr(model.config.get_text_config(decoder=True), "rope_parameters", ""))
    layers = DynamicCache(config=model.config).layers
    return (
        {"position_ids", "attention_mask"} <= set(inspect.signature(model.forward).parameters)
        and cache_argument(model) is not None
        and bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
        and not any(kind in rope for kind in BY_LENGTH)
    )
