"""One process per output folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from neuroada_cli.errors import OutputError
from neuroada_cli.files import strict_json
from neuroada_cli.files.disk import explained

LOCK = ".lock"
NAME_TRIES, NAME_SECONDS = 50, 0.01


class Lock:
    """Hold `folder` (made if missing) for the time of a `with` block.

    The kernel drops the lock when its holder dies, however it dies; the file stays and says who was last.
    Raises OutputError naming process and host when another process holds it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None

    def __enter__(self) -> Lock:
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise OutputError(
                f"is in use by {holder}", str(self.folder), "wait for it, or choose another folder"
            ) from None
        except OSError:  # a file system without locks: better to work unlocked than not at all
            pass
        try:
            with explained(self.folder):
                os.ftruncate(descriptor, 0)
                os.pwrite(
                    descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0
                )
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _holder(descriptor: int) -> str:
    """Who holds it, from the file; one that has not written its name yet gets a while to do so."""
    here = socket.gethostname()
    for _ in range(NAME_TRIES):
        try:
            said = strict_json.parse(os.pread(descriptor, 4096, 0))
            pid, host = int(said["pid"]), str(said["host"])
        except (OSError, ValueError, KeyError, TypeError):
            pid, host = 0, ""
        if pid > 0 and (host != here or _lives(pid)):
            return f"process {pid} on {host[:80]}"
        time.sleep(NAME_SECONDS)
    return "another process"


def _lives(pid: int) -> bool:
    """False for the holder before the present one, whose name is still in the file."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
