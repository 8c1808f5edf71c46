"""How much is tried, and the counts of it: kept in a file where `make reliability` names one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

TARGET = os.environ.get("NEUROADA_RELIABILITY")


def scale(default: int, thorough: int) -> int:
    """How many cases: in every run of the tests, or for the page of results."""
    return thorough if TARGET else default


def record(name: str, counts: dict[str, Any]) -> None:
    """Keep what was tried under `name` and what came of it."""
    if not TARGET:
        return
    file = Path(TARGET)
    found = json.loads(file.read_text()) if file.exists() else {}
    found[name] = counts
    file.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
