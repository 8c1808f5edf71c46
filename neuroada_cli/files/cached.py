"""Folders of what can be made again: what was not used for longest goes first."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def used(path: Path) -> None:
    """Note that a kept file was of use just now."""
    with suppress(OSError):
        os.utime(path)


def keep_to(folder: Path, ending: str, most_bytes: int, kept: Path | None = None) -> None:
    """Remove the files of a cache that were not used for longest, until the rest takes no more than this;
    never `kept`.

    What cannot be looked at or removed stays: another process may have been faster.
    """
    found = []
    with suppress(OSError):
        for path in folder.glob(f"*{ending}"):
            with suppress(OSError):
                about = path.stat()
                found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most_bytes:
            return
        if path == kept:
            continue
        with suppress(OSError):
            path.unlink()
            total -= size
