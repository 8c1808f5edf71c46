"""What kind of folder a path names, by the file that makes it one: a model, an adapter, a run.

Nothing here needs torch: commands ask before they import it. Others may write and remove beside the reader:
what went between two looks at it is as if it had gone before the first.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
LINKS = ("best", "last")  # of a run, to checkpoints


def is_adapter(folder: Path) -> bool:
    """An adapter, whoever saved it. One may hold its base's config, too."""
    return os.path.isfile(folder / ADAPTER_CONFIG)


def is_model(folder: Path) -> bool:
    """A whole model and no adapter."""
    return os.path.isfile(folder / CONFIG) and not is_adapter(folder)


def is_run(folder: Path) -> bool:
    """A run with a checkpoint that a link names."""
    return any(is_adapter(folder / link) for link in LINKS)


def holds_anything(folder: Path) -> bool:
    """A folder with something in it."""
    try:
        with os.scandir(folder) as found:
            return next(found, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False


def files_beneath(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every plain file in a folder and its folders, with what the system says of it; links lead nowhere."""
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                about = os.lstat(file := Path(place, name))
            except FileNotFoundError:
                continue
            if stat.S_ISREG(about.st_mode):
                yield file, about
