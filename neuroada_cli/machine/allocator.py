"""Keep freed memory in the process while training on the CPU.

glibc gives every large block back to the system when it is freed and asks for it again one step later; the
system then zeroes each page anew. A training step allocates the same blocks over and over, so this is pure
loss: it costs every method, and most the ones that keep more activations.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h: parameter numbers of mallopt(3), and glibc's defaults for them
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
DEFAULTS = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 128 * 1024, M_TOP_PAD: 128 * 1024}
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20}


@contextmanager
def keeping_freed_memory() -> Iterator[bool]:
    """Inside, large blocks come from the heap, and the heap never shrinks; yields whether glibc took that.

    Only for work that allocates the same sizes again and again. Generation does not: its cache grows token
    by token, no hole fits the next size, and such a heap would only ever grow.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is None or not hasattr(libc, "mallopt"):  # musl, macOS, Windows
        yield False
        return
    try:
        yield all(libc.mallopt(parameter, value) == 1 for parameter, value in KEEPING.items())
    finally:
        for parameter, value in DEFAULTS.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
