"""Numbers and types as people read them."""

from __future__ import annotations

import torch


def share(part: int, whole: int) -> str:
    """ "0.020 %": the form in which the paper gives the trainable share."""
    return f"{100 * part / whole:.3f} %"


def describe_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
