"""The result of a bench as rows for JSON; it needs nothing that draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BenchRow:
    """One method. Times are medians over the rounds; bytes are the peak of one step, measured alone.

    ratio_to_floor          own time over the floor's, round by round; ratio_low and ratio_high: quartiles
    predicted_bytes         without weights (`neuroada_cli.memory.predict`); None if untraceable
    resident_bytes          peak of the whole process (CPU on Linux)
    largest_batch           rows within the budget that was asked for
    """

    method: str
    k: int | None
    ratio_to_floor: float
    ratio_low: float
    ratio_high: float
    step_seconds: float
    samples_per_s: float
    tokens_per_s: float
    trainable: int
    trainable_share: float
    peak_bytes: int
    weights_bytes: int
    state_bytes: int
    activation_bytes: int
    predicted_bytes: int | None
    resident_bytes: int | None
    largest_batch: int | None
    largest_batch_samples_per_s: float | None

    @property
    def label(self) -> str:
        return f"{self.method} K={self.k}" if self.k is not None else self.method


def as_json(
    rows: Sequence[BenchRow], settings: dict[str, Any], machine: dict[str, Any]
) -> list[dict[str, Any]]:
    """One object per method, each with the whole run's settings and machine."""
    return [{**asdict(row), "settings": settings, "machine": machine} for row in rows]
