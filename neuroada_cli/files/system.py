"""What only some operating systems have: locks, folders that can be opened, names that can be swapped.

Linux and macOS have flock and open folders like files; Windows has neither: there one byte of a lock file is
locked (msvcrt), and folders go unlocked, as on a file system without locks.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

fcntl: Any = None
msvcrt: Any = None
try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

OPEN_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
LOCKED_BYTE = 1 << 30  # behind what a lock file says: where Windows has locked, nobody else can read


@functools.cache
def libc() -> Any:
    """The C library of this process, to look symbols up in; on Windows an object that has none."""
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (TypeError, OSError):  # Windows wants a name
        return object()


def lock(descriptor: int, shared: bool = False) -> bool:
    """Whether an open file's or folder's lock could be had; False where the system or file system has none.

    Raises BlockingIOError where another process holds it.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        if msvcrt is not None:
            return _lock_byte(descriptor)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return False


def _lock_byte(descriptor: int) -> bool:
    """As Windows has it: `msvcrt.locking` of one byte, which may lie behind the file's end."""
    os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK):
            raise BlockingIOError(error.errno, error.strerror) from None
        raise
    return True


def open_folder(folder: str | os.PathLike[str], flags: int = 0) -> int | None:
    """A descriptor of a folder; None where the system opens none. Raises OSError where there is no folder."""
    try:
        return os.open(folder, OPEN_FOLDER | flags)
    except PermissionError:
        if not opens_folders() and os.path.isdir(folder):
            return None
        raise


def opens_folders() -> bool:
    """Whether this is a POSIX system, where folders can be opened and locked, and open files removed."""
    return fcntl is not None


def lives(pid: int) -> bool:
    """Whether a process of this machine lives; True where the system cannot be asked without harm."""
    if sys.platform == "win32":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def fsync(path: Path) -> None:
    """A file's or folder's content, down to the disk; of a folder that cannot be opened, nothing. Raises
    OSError.
    """
    if path.is_dir():
        descriptor = open_folder(path)
    else:
        descriptor = os.open(path, os.O_RDONLY if opens_folders() else os.O_RDWR)
    if descriptor is None:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pass_cache(descriptor: int, wanted: bool) -> bool:
    """Whether an open file's writes go past the system's cache from now on (O_DIRECT): as wanted, where the
    system and the file system can.
    """
    flag = getattr(os, "O_DIRECT", 0)
    if fcntl is None or not flag:
        return False
    try:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | flag if wanted else flags & ~flag)
    except OSError:
        return False
    return wanted


def make_way(folder: Path) -> None:
    """An empty folder away that POSIX would rename over, and Windows would not."""
    if not opens_folders():
        with suppress(OSError):
            folder.rmdir()


def symbol(name: str) -> Callable[..., Any] | None:
    """A function of the C library, None where it has none of this name."""
    return getattr(libc(), name, None)
