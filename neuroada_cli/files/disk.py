"""What the operating system says about a disk, told to the user; and fsync."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from neuroada_cli.errors import LIMITS, OutputError, ResourceError, UserError
from neuroada_cli.files import system

_REMEDIES = {
    **LIMITS,
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EIO: "the disk is failing; choose another one",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a part of the path is a file",
    errno.EISDIR: "name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}
# About the file that the error names, which may be one that was only to be read.
_OF_THE_NAMED_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR}
# Rust libraries (tokenizers) raise plain Exceptions that end like this.
_RUST = re.compile(r"\(os error (\d+)\)")


@contextmanager
def explained(path: Path, nbytes: int | None = None) -> Iterator[None]:
    """Operating-system errors inside become ResourceError naming `path`, what was needed, what to do.

    An OSError without a number is not the system's and passes through, as everything else does.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise _explain(error, path, nbytes) from error
    except Exception as error:
        found = _RUST.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise _explain(OSError(number, os.strerror(number)), path, nbytes) from error


def _explain(error: OSError, path: Path, nbytes: int | None) -> ResourceError:
    named = error.filename if isinstance(error.filename, str) else None
    if named is not None and error.errno in _OF_THE_NAMED_FILE and not _is_written(Path(named), path):
        return ResourceError(
            f"cannot be opened: {error.strerror}", named, "check the path and its permissions"
        )
    size = f" ({nbytes:,} bytes wanted)" if nbytes is not None else ""
    return ResourceError(
        f"cannot be written: {error.strerror}{size}", str(path), _REMEDIES.get(error.errno or 0)
    )


def _is_written(named: Path, path: Path) -> bool:
    """Whether a file is `path`, above or below it, or something of ours beside it."""
    named, path = Path(os.path.abspath(named)), Path(os.path.abspath(path))
    return named.is_relative_to(path.parent) or path.is_relative_to(named)


def start_writeback(descriptor: int, begin: int, nbytes: int) -> None:
    """Let the disk begin with a part of a file, so that a later fsync has less to wait for. A hint: what it
    says is left to that fsync, and a system without the call (not Linux) does as it does.
    """
    call = _sync_file_range()
    if call is not None:
        call(descriptor, ctypes.c_int64(begin), ctypes.c_int64(nbytes), 2)  # SYNC_FILE_RANGE_WRITE


@functools.cache
def _sync_file_range() -> Callable[..., int] | None:
    return system.symbol("sync_file_range")


def require_place(path: Path, option: str) -> None:
    """Raises OutputError for a file named by `option` that could not be written when the work is done."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder", option, "name a file")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist", option, "make it, or name another")


def require_space(path: str | os.PathLike[str], nbytes: int) -> None:
    """Raises ResourceError when the file system of `path` lacks room for `nbytes`, or cannot be written."""
    place = os.path.abspath(path)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    with explained(Path(place)):
        free = shutil.disk_usage(place).free
    if free < nbytes:
        raise ResourceError(f"needs {nbytes:,} bytes, {free:,} are free", str(path), "make room")
    folder = place if os.path.isdir(place) else os.path.dirname(place)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ResourceError("may not be written", folder, "choose a folder you may write to")
