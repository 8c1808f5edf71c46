"""What the scripts here share: where results lie."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).with_name("results")
