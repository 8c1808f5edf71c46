"""SIGINT and SIGTERM become a request that the loop honours between two optimizer steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

HANDLED = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Inside the `with`, the first signal sets `requested`; a second Ctrl-C ends the process at once.

    Ending at once is safe: every file is written beside its target and renamed, so what is on disk is
    complete at any instant. Outside the main thread nothing is installed (Python allows it only there).
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.requested = self.requested or number
