"""How much memory the process has taken."""

from __future__ import annotations

import importlib.util
import os
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on CUDA, the process's largest resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return _largest_resident_set()


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
            return int(fields.read().split()[1]) * int(os.sysconf("SC_PAGE_SIZE"))
    except OSError:  # not Linux
        return peak_memory(torch.device("cpu"))


def available_memory() -> int:
    """Bytes that this machine could give now; all that it has where that is not said."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        pass
    if importlib.util.find_spec("psutil") is not None:
        import psutil

        return int(psutil.virtual_memory().available)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _largest_resident_set() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return _peak_working_set()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB but on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _peak_working_set() -> int:
    """By psutil, a dependency on Windows."""
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))
