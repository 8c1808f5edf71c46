"""Numbers and types as people read them."""

from __future__ import annotations

import torch


def share(part: int, whole: int) -> str:
    """ "0.020 %": the form in which the paper gives the trainable share."""
    return f"{100 * part / whole:.3f} %"


def describe_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def clock(seconds: float) -> str:
    """ "1:05" minutes and seconds, "2:01:05" with hours, "3 d 4 h" from two days on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """ "1 step", "1,200 steps"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size(nbytes: int) -> str:
    """ "1.23 GB" (10^9), "45.6 MB", "0.5 MB"."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
