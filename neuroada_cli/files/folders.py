"""What kind of folder a path names, by the file that makes it one: a model, an adapter, a run.

Nothing here needs torch: commands ask before they import it.
"""

from __future__ import annotations

import os
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
