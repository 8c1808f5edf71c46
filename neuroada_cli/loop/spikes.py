"""Losses that jump: a sign of a bad row or of a learning rate that is too high."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

WINDOW, LEAST = 50, 10  # steps a loss is compared with: at most, and before any is called a spike
DEVIATIONS, TIMES = 6.0, 2.0


class SpikeWatch:
    """A loss is a spike when, of the up to 50 steps before it (at least 10), it is more than

        mean + 6 x standard deviation,  and at least  2 x mean

    The second part keeps quiet where losses hardly differ. Only the losses count, so that a run that goes on
    after a stop flags what the uninterrupted one does.

    losses  of the steps so far, the last ones are enough
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._recent = deque(losses, maxlen=WINDOW)

    def usual_before(self, loss: float) -> float | None:
        """Take note of the next step's loss. The mean before it when it is a spike, else None."""
        recent = list(self._recent)
        self._recent.append(loss)
        if len(recent) < LEAST:
            return None
        mean = math.fsum(recent) / len(recent)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in recent) / len(recent))
        return mean if loss > mean + DEVIATIONS * deviation and loss >= TIMES * mean else None
