"""Where scores lie in a run, and what they are called there."""

from __future__ import annotations

from pathlib import Path

EVALUATIONS = "eval"  # the folder in a run, an adapter or a merged folder


def scores_of(report: Path, run_dir: Path) -> str:
    """What a report of scores in a run is called."""
    inner = [part for part in report.relative_to(run_dir).parent.parts if part != EVALUATIONS]
    return f"Scores of {' '.join(inner)}" if inner else "Scores"
