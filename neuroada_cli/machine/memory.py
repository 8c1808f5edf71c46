"""How much memory the process has taken."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on CUDA, the process's largest resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB but on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_in_use(device: str) -> int:
    """Bytes that this process takes by being there: the interpreter, libraries and rows; of a GPU what a
    context takes, which the allocator does not count.
    """
    if device.startswith("cuda"):
        torch.cuda.init()  # type: ignore[no-untyped-call]
        free, total = torch.cuda.mem_get_info(device)
        return total - free - torch.cuda.memory_reserved(device)
    try:
        with open("/proc/self/statm", encoding="ascii") as fields:
            return int(fields.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        return peak_memory(torch.device("cpu"))
