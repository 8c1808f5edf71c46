"""What a user is told when something is wrong: one line (what, where, what to do) and an exit code.

Anything else that escapes is our bug and exits 70. Raise the narrowest class; never exit from a library
function.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

from neuroada_cli.foreign_text import one_line


class UserError(Exception):
    """A problem the user can mend.

    what   the problem with its value: "select.k=4096, but model.layers.0.mlp.gate_proj has 2048 inputs"
    where  the place, as "file:line", a folder, or a module name; printed in front
    fix    the remedy as an imperative: "choose 1..2048"; printed behind
    """

    exit_code = 2

    def __init__(self, what: str, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(self.line())

    def line(self) -> str:
        """The message as one line of a length that can be read, without terminal escapes and secrets in
        addresses.
        """
        text = f"{one_line(self.where)}: {one_line(self.what)}" if self.where else one_line(self.what)
        return f"{text}; {one_line(self.fix)}" if self.fix else text


class RecipeError(UserError):
    """A recipe, flag or combination of settings is wrong (exit 2)."""

    exit_code = 2


class DataError(UserError):
    """A data set is missing, malformed, empty or unusable (exit 3)."""

    exit_code = 3


class ModelError(UserError):
    """A model folder, adapter or selection is missing, broken, or not the one that is needed (exit 4)."""

    exit_code = 4


class NumericsError(UserError):
    """NaN or infinity, nothing trainable, or frozen weights that moved (exit 5)."""

    exit_code = 5


class ResourceError(UserError):
    """Out of memory or disk, no permission, or a package that is not installed (exit 6)."""

    exit_code = 6


class OutputError(UserError):
    """The output exists, or another process holds it (exit 7)."""

    exit_code = 7


class PeerError(UserError):
    """A peer process of a distributed run failed (exit 8)."""

    exit_code = 8


class Followed(PeerError):
    """Another process of a distributed run ended with an error and says why: its exit code, no words."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run has said why")
        self.exit_code = exit_code


class Stopped(UserError):
    """Stopped by a signal after everything was saved (exit 130 for SIGINT, 143 SIGTERM, 129 SIGHUP)."""

    def __init__(self, signal_number: int, what: str, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.exit_code = 128 + signal_number


# What a process or the machine has run out of, whatever was to be opened -> what to do.
LIMITS = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs: the machine can open no more files",
    errno.ENOMEM: "close other programs, or take a machine with more memory",
}

# The system's words where memory for a file, or for a library's code, cannot be had: strerror's and ld.so's.
NO_MEMORY_LEFT = ("cannot allocate memory", "failed to map segment from shared object")


def limit_reached(error: BaseException | None) -> str | None:
    """The remedy where an exception, or one that led to it, says that files or memory have run out.

    Libraries in C++ and Rust raise exceptions of other classes, with the system's words in their text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in LIMITS:
            return LIMITS[error.errno]
        text = str(error).lower()
        if "too many open files" in text or f"(os error {errno.EMFILE})" in text:
            return LIMITS[errno.EMFILE]
        if any(words in text for words in NO_MEMORY_LEFT):
            return LIMITS[errno.ENOMEM]
        error = error.__cause__ or error.__context__
    return None


def unreadable(
    error: OSError, where: object, kind: type[UserError] = ModelError, what: str = "cannot be read"
) -> UserError:
    """What to raise for a file that could not be read: `kind`, or ResourceError where no file could be."""
    remedy = LIMITS.get(error.errno or 0)
    wrong = f"{what}: {error.strerror or error}"
    return kind(wrong, str(where)) if remedy is None else ResourceError(wrong, str(where), remedy)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the machine or on a GPU.

    By name and text, since naming torch's class would mean importing torch: of the CPU's memory it says so in
    a plain RuntimeError, of files that cannot be mapped into it there are others.
    """
    if isinstance(error, UserError):
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    said = ("defaultcpuallocator", "out of memory", *NO_MEMORY_LEFT)
    return isinstance(error, Exception) and any(words in text for words in said)


def nearest(word: str, known: Iterable[str], otherwise: str | None = None, cutoff: float = 0.6) -> str:
    """The remedy for a name that is not known: "did you mean X?", else `otherwise`, else all there are."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=cutoff)
    if close:
        return f"did you mean {close[0]}?"
    return otherwise if otherwise is not None else f"choose {', '.join(names)}"
