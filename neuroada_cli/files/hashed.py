"""A new file, written from front to back, its sha256 known at the end.

    caller's memory --copied--> a chunk --+--> the file, by one thread
                                          +--> sha256, by another

The caller may reuse its memory at once, and makes the next tensor while the last is on its way. A large file
goes past the system's cache where that works (O_DIRECT, on Linux): it has to reach the disk anyway before its
folder is put in place, finding as much memory for the cache costs more than that on many machines, and what
others have in the cache, the base model for one, stays there.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO

from neuroada_cli.files import system
from neuroada_cli.files.disk import start_writeback

CHUNK = 4 << 20  # bytes
CHUNKS = 4  # one being filled, others being written and hashed
BLOCK = 4096  # O_DIRECT wants multiples of a disk's sectors; one whose are larger refuses the write
REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)
PAST_CACHE = 128 << 20  # from so many bytes on; a smaller file is likely to be read again while it is there


class HashedFile:
    """Writes to an open, empty, unbuffered file of `nbytes` in the end.

    `write` and `finish` raise OSError, up to CHUNKS chunks after what it is about.
    """

    def __init__(self, file: FileIO, nbytes: int) -> None:
        self._file, self._sha256 = file, hashlib.sha256()
        self._free = [_Chunk(min(CHUNK, max(nbytes, 1))) for _ in range(min(CHUNKS, 1 + nbytes // CHUNK))]
        self._busy: list[_Chunk] = []
        self._direct = nbytes >= PAST_CACHE and system.pass_cache(file.fileno(), True)
        self._written = 0
        self._broken = False
        self._writer, self._hasher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._broken = True  # whoever leaves before the end wants no more to be written
        for thread in (self._writer, self._hasher):
            thread.shutdown(cancel_futures=True)

    def write(self, data: memoryview) -> None:
        """The next bytes; `data` may be reused afterwards. Raises OSError."""
        while len(data):
            chunk = self._free[0]
            count = chunk.fill(data)
            data = data[count:]
            if chunk.full:
                self._hand_on(self._free.pop(0))

    def finish(self) -> str:
        """What is left is written. Returns the sha256 of the whole file; raises OSError."""
        last = self._free.pop(0)
        while self._busy:
            self._wait()
        self._put(last.filled)
        self._sha256.update(last.filled)
        return self._sha256.hexdigest()

    def _hand_on(self, chunk: _Chunk) -> None:
        chunk.ways = [
            self._writer.submit(self._put, chunk.filled),
            self._hasher.submit(self._sha256.update, chunk.filled),
        ]
        self._busy.append(chunk)
        if not self._free:
            self._wait()

    def _wait(self) -> None:
        chunk = self._busy.pop(0)
        for way in chunk.ways:
            way.result()
        chunk.empty()
        self._free.append(chunk)

    def _put(self, data: memoryview) -> None:
        if self._broken:
            return
        try:
            self._put_all(data)
        except BaseException:
            self._broken = True  # the chunks behind would be written where this one belongs
            raise

    def _put_all(self, data: memoryview) -> None:
        begin, done = self._written, 0
        while done < len(data):
            blocks = (len(data) - done) // BLOCK * BLOCK
            if self._direct and (blocks == 0 or done % BLOCK):
                self._through_cache()
            try:
                done += self._file.write(data[done : done + blocks] if self._direct else data[done:])
            except OSError as error:  # a file system that took the flag and will not have such writes
                if not self._direct or error.errno not in REFUSALS:
                    raise
                self._through_cache()
        self._written += done
        if not self._direct:
            start_writeback(self._file.fileno(), begin, done)

    def _through_cache(self) -> None:
        self._direct = system.pass_cache(self._file.fileno(), False)


class _Chunk:
    """Memory that begins on a page, as O_DIRECT wants it; shared, so that a fork copies none of it."""

    def __init__(self, nbytes: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, nbytes))
        self._at = 0
        self.ways: list[Future[object]] = []

    def fill(self, data: memoryview) -> int:
        """Take as much of `data` as there is room for; returns how much."""
        count = min(len(data), len(self._memory) - self._at)
        self._memory[self._at : self._at + count] = data[:count]
        self._at += count
        return count

    def empty(self) -> None:
        self._at = 0
        self.ways = []

    @property
    def full(self) -> bool:
        return self._at == len(self._memory)

    @property
    def filled(self) -> memoryview:
        return self._memory[: self._at]
