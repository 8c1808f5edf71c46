"""What the environment says about a process's place among others (no torch)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from neuroada_cli.errors import ResourceError

# what torchrun, and those that start processes as it does, tell each of them
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

LAUNCHED = "NEUROADA_LAUNCHED"  # set for processes that `--processes` started, which says itself who died


@dataclass(frozen=True)
class Place:
    """number is the rank among `size` processes; local and local_size count those of this machine."""

    number: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1


def several() -> bool:
    """Whether this process is one of several. Does not raise."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


def refuse_strangers(alone: bool, does: str) -> None:
    """Raises ResourceError for one of several processes that do not know of each other: all would write into
    one folder.
    """
    if alone and several():
        raise ResourceError(
            f"was started as one of {os.environ['WORLD_SIZE'][:16]} processes, but {does} alone",
            "WORLD_SIZE",
            "start it without torchrun or accelerate, or as `-m neuroada_cli`",
        )


def place() -> Place:
    """This process's place; that of a single one where no launcher says otherwise.

    Raises ResourceError for a launcher that says only a part of it.
    """
    if not several():
        return Place()
    found = {name: os.environ.get(name, "") for name in NAMES}
    numbers = [found[name] for name in NAMES if name != "MASTER_ADDR"]
    if not found["MASTER_ADDR"] or not all(number.isdecimal() for number in numbers):
        missing = next(n for n in NAMES if not (found[n] if n == "MASTER_ADDR" else found[n].isdecimal()))
        raise ResourceError(
            f"is set to {found['WORLD_SIZE'][:16]}, but {missing} tells no process its place",
            "WORLD_SIZE",
            "start it with torchrun or with --processes",
        )
    rank, size, local, local_size = (int(found[name]) for name in NAMES[:4])
    return Place(rank, size, local, local_size)
