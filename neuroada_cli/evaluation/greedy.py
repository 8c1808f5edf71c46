"""Which models the most likely continuations can be written for by `writer`, and not by their library.

S = tokens of a text, V = vocabulary
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from neuroada_cli.loop.caches import cache_argument, few_logits

# lengths of rows in a batch change what these compute: frequencies are chosen by the longest
BY_LENGTH = ("dynamic", "longrope")
HEAD, HOLE, REST = 4, 3, 5  # tokens of a text that is tried, and columns between them that nobody looks at
# of the logits' spread, between a text in one piece and in two: other shapes, so other roundings
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


def can_leave(model: Any) -> bool:
    """Whether rows of this model can leave a batch: it decodes as its library has it, over a cache of keys
    and values and nothing else, and what it computes of a row depends on that row alone.
    """
    from transformers import GenerationMixin

    plain = isinstance(model, GenerationMixin) and all(
        getattr(type(model), name) is getattr(GenerationMixin, name)
        for name in ("generate", "prepare_inputs_for_generation")
    )
    return plain and keeps_only_keys(model) and reads_in_parts(model)


@torch.no_grad()
def reads_in_parts(model: Any) -> bool:
    """Whether a text behind a cache, with columns in it that nobody looks at, is to the model what it is in
    one piece. Tried: what changes a model (an intervention at the last tokens of a prompt) is in no config.
    """
    from neuroada_cli.evaluation import row_cache

    weight, name = model.get_input_embeddings().weight, str(cache_argument(model))
    text_1S = torch.arange(1, 1 + HEAD + REST, device=weight.device)[None] % len(weight)
    seen_1S = torch.ones_like(text_1S)
    hole_1S = torch.zeros_like(text_1S[:, :HOLE])

    def logits(cache: Any, tokens_1S: Tensor, mask_1S: Tensor, first: int) -> Tensor:
        """[V] behind tokens of which the first stands at place `first`."""
        places_1S = torch.arange(first, first + tokens_1S.shape[1], device=weight.device)[None]
        asked = {"input_ids": tokens_1S, "attention_mask": mask_1S, "position_ids": places_1S}
        given: dict[str, Any] = {**asked, name: cache, "use_cache": True, **few_logits(model, 1)}
        logits_V: Tensor = model(**given).logits[0, -1].float()
        return logits_V

    whole_V = logits(row_cache.empty(model.config), text_1S, seen_1S, 0)
    cache = row_cache.empty(model.config)
    logits(cache, text_1S[:, :HEAD], seen_1S[:, :HEAD], 0)
    logits(cache, text_1S[:, :HOLE], seen_1S[:, : HEAD + HOLE], HEAD)
    mask_1S = torch.cat([seen_1S[:, :HEAD], hole_1S, seen_1S[:, HEAD:]], dim=1)
    parts_V = logits(cache, text_1S[:, HEAD:], mask_1S, HEAD)
    differs = float((parts_V - whole_V).abs().max())
    return differs <= TOLERANCE.get(weight.dtype, 0) * float(whole_V.std())


def keeps_only_keys(model: Any) -> bool:
    """Whether all that is kept is keys and values, and what comes of a row depends on that row alone."""
    from transformers import DynamicCache, PreTrainedModel
    from transformers.cache_utils import DynamicLayer

    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder:
        return False
    text = model.config.get_text_config(decoder=True)
    rope = str(getattr(text, "rope_parameters", ""))
    layers = DynamicCache(config=model.config).layers
    return (
        {"position_ids", "attention_mask"} <= set(inspect.signature(model.forward).parameters)
        and cache_argument(model) is not None
        and bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
        and not any(kind in rope for kind in BY_LENGTH)
        and "local"
        not in getattr(text, "attention_layers", ())  # GPT-Neo's window counts columns, seen or not
    )
