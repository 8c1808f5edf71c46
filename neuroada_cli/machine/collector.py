"""Python's collector of reference cycles while a command starts.

Importing torch and transformers makes hundreds of thousands of objects, which stay. By default the collector
walks through them again and again meanwhile, a tenth of what a start takes of the processor.
"""

from __future__ import annotations

import gc

RARELY = (50_000, 20, 100)  # new objects before the youngest are looked through, and so on
_before: list[tuple[int, int, int]] = []


def spare() -> None:
    """From now on it comes rarely. Call it before anything heavy is imported."""
    _before[:] = _before or [gc.get_threshold()]
    gc.set_threshold(*RARELY)


def as_usual() -> None:
    """From now on it comes as often as it did before `spare`: a model's memory is not to wait for it."""
    if _before:
        gc.set_threshold(*_before.pop())
