"""Keep freed memory in the process while training on the CPU.

glibc gives every large block back to the system when it is freed and asks for it again one step later; the
system then zeroes each page anew. A training step allocates the same blocks over and over, so this is pure
loss: it costs every method, and most the ones that keep more activations. `benchmarks/` measures it.
"""

from __future__ import annotations

import ctypes
import sys

# malloc.h: parameter numbers of mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and never shrink it. True where glibc took the settings.

    Affects this process only; peak memory stays what it was, it is just not returned between steps.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl and others
        return False
    largest = 2**31 - 1
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, largest), (M_TOP_PAD, 64 * 2**20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
