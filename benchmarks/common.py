"""What the scripts here share: where results lie, and what a whole process takes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Taken:
    """By a process that has ended: seconds of the processor and on the wall, and its largest resident set."""

    processor: float
    wall: float
    resident_bytes: int
    said: str


def whole_process(command: Sequence[str], folder: Path, more: Mapping[str, str] | None = None) -> Taken:
    """Run a command on one thread. more: of its environment.

    The bytecode of what it imports is kept, as it is of an installed package.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    log = folder / "said.txt"
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, env=environment)
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} fails: {text[-2000:]}")
    return Taken(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * 1024, text)
