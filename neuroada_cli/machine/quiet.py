"""Libraries that tell a user what only a developer of theirs can use."""

from __future__ import annotations

import logging


def quiet_bitsandbytes() -> None:
    """Call it before bitsandbytes is imported: no line about a missing kernel, none per forward pass.

    On a processor with AVX-512 it asks for a further package at import, and every int8 product says that it
    casts its inputs. Errors are still told, and a level that somebody has set stays.
    """
    logger = logging.getLogger("bitsandbytes")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)
