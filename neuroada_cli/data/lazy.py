"""Rows that are read when they are asked for, so that a set may be larger than memory.

Of each row only its place in the file is held (8 bytes); what is made of rows is made again each time.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedReader, FileIO
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, TypeVar, overload

from neuroada_cli.data.formats import Row
from neuroada_cli.errors import DataError, unreadable

T = TypeVar("T")
S = TypeVar("S")
READ_AT_ONCE = 1 << 20


class Lazy(Sequence[T]):
    """A sequence whose elements come into being one at a time; a slice is a list of them."""

    def fingerprint(self) -> str:
        """What tells its elements from others', without going through them again."""
        raise NotImplementedError

    def _at(self, place: int) -> T:
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self._at(each) for each in range(*place.indices(len(self)))]
        return self._at(range(len(self))[place])


class JsonLines(Lazy[Row]):
    """The rows of a file of JSON lines.

    parse  line -> row; what is wrong with a line was found out before, so that it raises nothing
    places where the line of each row begins, in bytes; sha256 of all rows
    A file that changes after it was looked at stops the run: DataError.
    """

    def __init__(
        self, file: Path, where: str, places: array[int], sha256: str, parse: Callable[[bytes], Row]
    ) -> None:
        self._where, self._places, self._sha256, self._parse = where, places, sha256, parse
        try:
            self._file = BufferedReader(FileIO(file))  # held open: what is read is what was looked at
        except OSError as error:
            raise unreadable(error, where, DataError) from None
        self._was = _stamp(self._file.fileno())
        self.bytes = self._was[0]

    def fingerprint(self) -> str:
        return self._sha256

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Row]:
        for place in range(len(self)):  # the file's own buffer makes neighbours cheap
            yield self._at(place)

    def _at(self, place: int) -> Row:
        begin = self._places[place]
        try:
            if self._file.tell() != begin:
                self._file.seek(begin)
            line = self._file.readline()
            changed = _stamp(self._file.fileno()) != self._was
        except OSError as error:
            raise unreadable(error, self._where, DataError) from None
        if changed:
            raise DataError(
                "has changed since it was read", self._where, "start again with the file as it is"
            )
        return self._parse(line)


def _stamp(descriptor: int) -> tuple[int, int]:
    about = os.fstat(descriptor)
    return about.st_size, about.st_mtime_ns


class Made(Lazy[T]):
    """What `make` gives for each element of `source` and its number.

    told  the fingerprint of what it gives
    """

    def __init__(self, source: Sequence[S], make: Callable[[int, S], T], told: str) -> None:
        self._source: Sequence[Any] = source
        self._make, self._told = make, told

    def fingerprint(self) -> str:
        return self._told

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[T]:
        return (self._make(number, each) for number, each in enumerate(self._source))

    def _at(self, place: int) -> T:
        return self._make(place, self._source[place])


class _Chosen(Lazy[T]):
    def __init__(self, source: Lazy[T], places: Sequence[int]) -> None:
        self._source, self._places = source, array("q", places)

    def fingerprint(self) -> str:
        return _hash_of([self._source.fingerprint().encode(), self._places.tobytes()])

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[T]:
        return (self._source[place] for place in self._places)

    def _at(self, place: int) -> T:
        return self._source[self._places[place]]


class _Joined(Lazy[T]):
    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self._parts, self._ends = parts, list(accumulate(map(len, parts)))

    def fingerprint(self) -> str:
        return _hash_of(fingerprint_of(part).encode() for part in self._parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._parts)

    def _at(self, place: int) -> T:
        number = bisect_right(self._ends, place)
        return self._parts[number][place - self._ends[number] + len(self._parts[number])]


def chosen(source: Sequence[T], places: Sequence[int]) -> Sequence[T]:
    """The elements at these places: a list of a list's, else lazily."""
    return _Chosen(source, places) if isinstance(source, Lazy) else [source[place] for place in places]


def joined(parts: Sequence[Sequence[T]]) -> Sequence[T]:
    """All elements of the parts: a list where all of them are lists, else lazily."""
    if any(isinstance(part, Lazy) for part in parts):
        return _Joined(parts)
    return [each for part in parts for each in part]


def fingerprint_of(elements: Sequence[object]) -> str:
    """A hash by which elements are told from others."""
    if isinstance(elements, Lazy):
        return elements.fingerprint()
    return _hash_of(repr(each).encode("utf-8", "surrogatepass") + b"\n" for each in elements)


def _hash_of(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


class Positions:
    """Reads parts of a file by their place, also in processes that were forked with it open."""

    def __init__(self, file: Path) -> None:
        self._file = FileIO(file, "rb")

    def read(self, begin: int, count: int) -> bytes:
        """Exactly so many bytes. Raises OSError, EOFError for a file that has fewer."""
        found = self._some(begin, count)
        while len(found) < count:  # one call gives at most 2 GiB
            more = self._some(begin + len(found), count - len(found))
            if not more:
                raise EOFError
            found += more
        return found

    def _some(self, begin: int, count: int) -> bytes:
        if hasattr(os, "pread"):  # which leaves the place alone that forked processes share
            return os.pread(self._file.fileno(), count, begin)
        self._file.seek(begin)
        return self._file.read(count) or b""
