"""Where what can be made again is kept: compiled kernels, converted models."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$NEUROADA_CACHE, else neuroada/ in the user's cache folder; `~` is the home folder, empty is unset."""
    if own := os.environ.get("NEUROADA_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "neuroada"
