"""What the operating system says about the processor."""

from __future__ import annotations

import os
import platform


def cpu_lines(*fields: str) -> list[str]:
    """The lines of /proc/cpuinfo that begin with one of `fields`; none where there is no such file."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return [line for line in lines if line.startswith(fields)]
    except OSError:
        return []


def cpu_name() -> str:
    names = [line.partition(":")[2].strip() for line in cpu_lines("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int | None:
    """Cores that this process may use; None where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
