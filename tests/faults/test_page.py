"""The counts behind docs/reliability.md are those of a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from counting import TARGET
from test_faults import QUICK, SLOW

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = {
    ("mutated adapters", "adapters with other tensors"): 1_000_000,
    ("mutated recipes",): 1_000_000,
    ("mutated rows",): 100_000,
    ("every single-bit flip",): 100_000,
    ("wrong bases",): 1_000,
    ("few file descriptors",): 10,
    ("random moments of reading",): 3_000,
    ("random moments of merging",): 60,
    ("random kills: saving",): 10_000,
    ("random signals",): 200,
    ("steps of training",): 50_000,
}


@pytest.mark.skipif(TARGET is not None, reason="the counts are being made")
def test_the_counts_are_those_of_a_whole_run() -> None:
    counts = json.loads((DOCS / "results" / "reliability.json").read_text(encoding="utf-8"))
    assert {name for name in counts if name.startswith("every call")} == {
        f"every call: {name}" for name in [*QUICK, *SLOW]
    }
    for kinds, least in FIGURES.items():
        tried = sum(sum(found.values()) for name, found in counts.items() if name.startswith(kinds))
        assert tried >= least, kinds
    for kind, least in (("random signals", 200), ("random kills: training", 100)):
        by_name = [found for name, found in counts.items() if name.startswith(kind)]
        assert max(found.get("resumed, same end", 0) for found in by_name) >= least
