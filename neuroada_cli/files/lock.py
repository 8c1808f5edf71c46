"""One process per output folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from neuroada_cli.errors import OutputError
from neuroada_cli.files.atomic import explained

LOCK = ".lock"


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
        with explained(self.folder):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _holder(descriptor: int) -> str:
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(said['pid'])} on {said['host']}"
    except (ValueError, KeyError, TypeError):  # it has the lock but has not written its name yet
        return "another process"
