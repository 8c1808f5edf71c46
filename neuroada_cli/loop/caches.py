"""What a causal model keeps of the tokens that it has read, and how it is handed over."""

from __future__ import annotations

import inspect
from typing import Any

CACHE = ("past_key_values", "cache")  # what models call it, the latter from transformers 5.24 on
MASKED = ("eager", "sdpa")  # attention that takes any mask, also with a gap between prefix and rest


def cache_argument(model: Any) -> str | None:
    """The name by which the model's forward takes a cache."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in CACHE if name in taken), None)


def few_logits(model: Any, places: int) -> dict[str, int]:
    """What asks a model for the logits of its last places only, where it can be asked."""
    return (
        {"logits_to_keep": places} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    )


def takes_any_mask(model: Any) -> bool:
    return getattr(model.config, "_attn_implementation", None) in MASKED
