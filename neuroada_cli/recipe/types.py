"""Names of data types: torch's own names mean the short ones. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHORT = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}


def short_type(name: Any) -> Any:
    """ "bf16" for "bfloat16" and "torch.bfloat16"; whatever else it is, unchanged."""
    return SHORT.get(name.removeprefix("torch."), name) if isinstance(name, str) else name


def with_short_types(words: Sequence[str], option: str = "--dtype") -> list[str]:
    """A command line whose data type is named by its short name."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == option:
            word = short_type(word)
        elif word.startswith(f"{option}="):
            word = f"{option}={short_type(word.partition('=')[2])}"
        found.append(word)
    return found
