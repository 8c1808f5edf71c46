"""Prompt templates that several families share."""

from __future__ import annotations

# The wording is fixed by the published protocols (Stanford Alpaca's template): models are compared under it.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "### Input:\n{input}\n\n### Response:\n"
)
RESPONSE = "### Response:"


def alpaca(instruction: str, context: str = "") -> str:
    template = ALPACA_INPUT if context else ALPACA
    return template.replace("{instruction}", instruction).replace("{input}", context)
