"""How a signal ends a command: at once, with one line, 128 + its number, and nothing left half written.

`install` comes before the heavy imports. From then on SIGINT, SIGTERM and SIGHUP raise no exception, which a
library half imported or called back from C would swallow or turn into another: the handler itself takes away
what is half written and leaves. Only two things make it wait:

    held     a few calls that belong together, like the two renames of an exchange
    Noted    work that stops itself at a better place, like a training between two optimizer steps

A second signal ends the process whatever is going on. What is on the disk is complete even then; temporaries
that it leaves are removed by the next writer.
"""

from __future__ import annotations

import atexit
import io
import os
import stat
import sys
import time

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all the rest here
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any

    Tidy = Callable[[], object]
else:
    import _signal as signal  # all of it but the enums, whose import takes three times as long as the rest

NAMES = {getattr(signal, name): name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
SIGNALS = tuple(NAMES)
# One wish may arrive twice: `timeout` and schedulers tell a process and then its group; Ctrl-C reaches a
# launcher and its processes, which the launcher then tells by another signal.
SAME_WISH_SECONDS = {"same": 0.1, "other": 1.0}
NOTHING_LOST = "nothing is left half written"
SHOW_CURSOR = "\x1b[?25h"
PR_SET_PDEATHSIG = 1  # prctl(2)


class _suppress:  # noqa: N801
    """As contextlib has it, whose import a signal would have to wait for."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return kind is not None and issubclass(kind, self._kinds)


class _State:
    """Of this process: who installed the handlers, the first signal, and what an end has to see to."""

    def __init__(self) -> None:
        self.owner = 0
        self.number: int | None = None
        self.since = 0.0
        self.ending = False
        # lists, since appending and removing are single steps, whichever thread takes them
        self.holds: list[object] = []
        self.tidies: list[Tidy] = []
        self.words: list[str] = []


_state = _State()


def install() -> None:
    """From here on the signals end this process as described above. One that is ignored stays ignored
    (nohup). Call it in the main thread.
    """
    if _state.owner != os.getpid():
        atexit.register(_deafen)  # the first one registered is the last one called
    _state.owner, _state.number, _state.ending = os.getpid(), None, False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the end does not wait for whoever reads it
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def _deafen() -> None:
    """All is done: the interpreter, which takes our handlers away as it ends, is not to die of a signal.

    A GPU's libraries may hang while they are torn down: then it stays one that a signal ends.
    """
    torch = sys.modules.get("torch")
    drives = torch is not None and torch.cuda.is_initialized()
    if _state.owner == os.getpid() and not drives:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """Whoever started this process and is killed takes it along: it gets SIGTERM, as if it had been told to
    end. On Linux; the thread that started it has to live as long as it does.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def exit_signalled(number: int) -> None:
    """End the process now, with the code of a signal."""
    os._exit(128 + number)


def is_again(number: int, first: int, since: float) -> bool:
    """Whether a signal now is a second wish, and not the first one told twice. Nobody tells SIGINT twice."""
    if number == first == signal.SIGINT:
        return True
    return time.monotonic() - since > SAME_WISH_SECONDS["same" if number == first else "other"]


def let_go_of_terminal(number: int) -> None:
    """After SIGHUP there is none: printing there would fail, and with it the saving that is to come."""
    if number != getattr(signal, "SIGHUP", None):
        return
    for descriptor in (1, 2):
        with _suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


class held:  # noqa: N801  (a context manager, named as contextlib names them)
    """Inside, a signal waits: for calls that belong together and take no time."""

    def __enter__(self) -> None:
        _state.holds.append(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _state.holds.remove(self)
        waits = _state.number is not None and not _state.holds and not _state.ending
        if waits and _state.owner == os.getpid():
            _end(_state.number or 0)


class tidied:  # noqa: N801
    """Inside, a signal that ends the process calls `tidy` first: it takes away what is half written."""

    def __init__(self, tidy: Tidy) -> None:
        self._tidy = tidy

    def __enter__(self) -> None:
        _state.tidies.append(self._tidy)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _state.tidies.remove(self._tidy)


class saying:  # noqa: N801
    """Inside, the line of a stopped command ends in these words."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __enter__(self) -> None:
        _state.words.append(self._words)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _state.words.remove(self._words)


class Noted:
    """Inside, the first signal only sets `requested`; a second one ends the process at once.

    on_request  called with its number, from within the handler
    Whoever uses it stops at its next good place and ends with 128 + requested. Outside the main thread
    nothing is installed (Python allows it only there).
    """

    def __init__(self, on_request: Callable[[int], object] | None = None) -> None:
        self.requested: int | None = None
        self._on_request = on_request
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Noted:
        with _suppress(ValueError):  # another thread
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested, self._since = number, time.monotonic()
            let_go_of_terminal(number)
            if self._on_request is not None:
                self._on_request(number)
        elif is_again(number, self.requested, self._since):
            exit_signalled(number)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.owner:  # a forked child of a library: what we hold is not its to take away
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if _state.number is not None:
        if is_again(number, _state.number, _state.since):
            exit_signalled(number)
        return
    _state.number, _state.since = number, time.monotonic()
    let_go_of_terminal(number)
    if not _state.holds:
        _end(number)


def _end(number: int) -> None:
    _state.ending = True
    for tidy in reversed(_state.tidies):
        with _suppress(BaseException):  # the disk may refuse; the next writer removes it
            tidy()
    words = _state.words[-1] if _state.words else NOTHING_LOST
    if os.environ.get("RANK", "0") == "0":  # of several processes (torchrun) one says it
        _write(f"stopped by {NAMES[number]}; {words}\n")
    exit_signalled(number)


def _write(line: str) -> None:
    """To stderr, past every buffer; a bar that was drawn there goes, and the cursor comes back."""
    with _suppress(OSError):
        if os.isatty(2):
            line = f"{SHOW_CURSOR}\r\x1b[K{line}"
        os.write(2, line.encode())
