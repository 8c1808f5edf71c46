"""One process per output."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from neuroada_cli import stopping
from neuroada_cli.errors import OutputError
from neuroada_cli.files import strict_json, system
from neuroada_cli.files.disk import explained

LOCK = ".lock"
OPEN_LOCK = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
NAME_TRIES, NAME_SECONDS = 50, 0.01


class Lock:
    """Hold `folder` (made if missing) for the time of a `with` block.

    The kernel drops the lock when its holder dies, however it dies; then its file stays, says who was last,
    and is no obstacle. A holder that ends well takes the file away, and the folders that it made where
    nothing came to lie in them.
    Raises OutputError naming process and host when another process holds it, ResourceError for the disk.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str = LOCK) -> None:
        self.folder, self.name = Path(folder), name
        self.held = self.folder  # what a refusal names
        self._made: list[Path] = []
        self._descriptor: int | None = None
        self._released = stopping.tidied(self._release)  # also where a signal ends the process

    @classmethod
    def on(cls, target: str | os.PathLike[str]) -> Lock:
        """For a file or folder that may not exist yet and is replaced as a whole: held beside it."""
        path = Path(os.path.realpath(target))
        lock = cls(path.parent, f".{path.name}{LOCK}")
        lock.held = Path(target)
        return lock

    def __enter__(self) -> Lock:
        self._released.__enter__()
        try:
            with explained(self.held):
                self._made = [path for path in (self.folder, *self.folder.parents) if not path.is_dir()]
                self.folder.mkdir(parents=True, exist_ok=True)
            with stopping.held():
                self._descriptor = self._acquired()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()
        self._released.__exit__(kind, error, trace)

    def _release(self) -> None:
        with stopping.held():
            if self._descriptor is not None:
                with suppress(OSError):  # while it is still ours
                    (self.folder / self.name).unlink()
                os.close(self._descriptor)
                self._descriptor = None
                if not system.opens_folders():  # Windows, which takes no open file away
                    with suppress(OSError):
                        (self.folder / self.name).unlink()
            self._forget_folder()

    def _acquired(self) -> int:
        while True:
            with explained(self.held):
                # the folder too may go between two tries: its former holder made it
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    descriptor = os.open(self.folder / self.name, OPEN_LOCK, 0o666)
                except FileNotFoundError:
                    continue
            try:
                self._locked(descriptor)
                if not self._is_file(descriptor):  # its holder has just taken the file away: a new one, then
                    os.close(descriptor)
                    continue
                self._sign(descriptor)
                return descriptor
            except BaseException:
                os.close(descriptor)
                raise

    def _sign(self, descriptor: int) -> None:
        """Say who holds it; where the disk takes no more, the file goes again."""
        said = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        try:
            with explained(self.held):
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, said.encode())
        except BaseException:
            with suppress(OSError):
                (self.folder / self.name).unlink()
            raise

    def _locked(self, descriptor: int) -> None:
        try:
            system.lock(descriptor)  # where there are none: better to work unlocked than not at all
        except BlockingIOError:
            raise OutputError(
                f"is in use by {_holder(descriptor)}", str(self.held), "wait for it, or choose another output"
            ) from None

    def _is_file(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.folder / self.name), os.fstat(descriptor))
        except OSError:
            return False

    def _forget_folder(self) -> None:
        with suppress(OSError):  # not empty
            for folder in self._made:
                folder.rmdir()


class Reading:
    """A folder that is being read: for as long as this lives, `remove_folder(…, unless_read=True)` leaves it
    where it is, also in another process. On a file system without locks it keeps nobody from anything.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._descriptor: int | None = None
        with suppress(OSError):  # gone, or about to go
            self._descriptor = system.open_folder(folder)
            if self._descriptor is not None:
                system.lock(self._descriptor, shared=True)

    def is_of(self, folder: str | os.PathLike[str]) -> bool:
        """Whether the folder that has this name now is the one that is being read."""
        try:
            return self._descriptor is not None and os.path.samestat(
                os.stat(folder), os.fstat(self._descriptor)
            )
        except OSError:
            return False

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _holder(descriptor: int) -> str:
    """Who holds it, from the file; one that has not written its name yet gets a while to do so."""
    here = socket.gethostname()
    for _ in range(NAME_TRIES):
        try:
            said = strict_json.parse(_said(descriptor))
            pid, host = int(said["pid"]), str(said["host"])
        except (OSError, ValueError, KeyError, TypeError):
            pid, host = 0, ""
        if pid > 0 and (host != here or system.lives(pid)):
            return f"process {pid} on {host[:80]}"
        time.sleep(NAME_SECONDS)
    return "another process"


def _said(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 4096)
