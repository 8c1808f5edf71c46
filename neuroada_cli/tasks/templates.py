"""Prompt templates that several families share, filled in one pass."""

from __future__ import annotations

import re
from collections.abc import Sequence

# The wording is fixed by the published protocols (Stanford Alpaca's template): models are compared under it.
HEAD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n"
)
HEAD_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
ASKED = "### Instruction:\n{instruction}\n\n"
INPUT = "### Input:\n{input}\n\n"
RESPONSE = "### Response:"
_FIELD = re.compile(r"\{(\w+)\}")


def fill(template: str, **values: str) -> str:
    """A template's {fields} by their names, once: braces in what is filled in are text. Raises KeyError."""
    return _FIELD.sub(lambda found: values[found[1]], template)


def alpaca(
    instruction: str, context: str = "", system: str = "", history: Sequence[tuple[str, str]] = ()
) -> str:
    """system: the first lines; history: (asked, answered) of the turns before, oldest first."""
    before = "".join(f"{fill(ASKED, instruction=q)}{RESPONSE}\n{a}\n\n" for q, a in history)
    head = HEAD_INPUT if context else HEAD
    asked = fill(ASKED + (INPUT if context else ""), instruction=instruction, input=context)
    first = f"{system}\n\n" if system else ""
    return f"{first}{head}{before}{asked}{RESPONSE}\n"
