"""Losses that do not move at all: a sign that nothing that trains reaches the outputs."""

from __future__ import annotations

from collections.abc import Iterable


class Standstill:
    """Notices when so many losses in a row are one number, bit for bit, and says so once.

    Losses of training differ with their rows, so it takes many of them; a validation loss is always of the
    same rows, so the second one tells.

    most    how many
    losses  of the run so far, so that one that goes on says what the undisturbed one does
    """

    def __init__(self, most: int, losses: Iterable[float] = ()) -> None:
        self._most, self._last, self._alike, self._said = most, float("nan"), 0, False
        for loss in losses:
            self.stands(loss)

    def stands(self, loss: float) -> bool:
        """Take note of the next loss. Whether it makes the row long enough, for the first time."""
        self._alike = self._alike + 1 if loss == self._last else 1
        self._last = loss
        found = self._alike >= self._most and not self._said
        self._said |= found
        return found
