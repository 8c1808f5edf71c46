"""Names of data types (torch's own mean the short ones), folders and devices. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Patterns of text, and what they say in words.
NAME, DEVICE = r"^\w[\w.-]*$", r"^(cpu|mps|cuda(:\d+)?)$"
WORDS = {
    NAME: "letters, digits, _, . and -, the first of them no . or -",
    DEVICE: "cpu, mps, cuda or cuda:N",
}
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
