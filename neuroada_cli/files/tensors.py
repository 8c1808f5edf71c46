"""Safetensors files: written tensor by tensor and hashed on the way, read strictly.

Written by our own code because the format's library takes all tensors at once and hides what the disk said.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli.errors import ModelError, unreadable
from neuroada_cli.files.atomic import atomic_file
from neuroada_cli.files.disk import explained, start_writeback
from neuroada_cli.files.manifest import remember_hash
from neuroada_cli.files.safetensors_header import TYPES, TensorInfo, read_header

CHUNK = 8 << 20
ROOM = 8192  # of a header that is written last
HASHED_AT_ONCE = 1 << 20  # stays in the processor's cache between reading and hashing
DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, (name, _) in TYPES.items()}
CODES = {dtype: code for code, dtype in DTYPES.items()}

TensorPlan = tuple[str, torch.dtype, Sequence[int]]


def stream_tensors(
    path: str | os.PathLike[str],
    plan: Sequence[TensorPlan],
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file, one tensor in memory at a time, all or nothing.

    plan     (name, dtype, shape) of every tensor, in the order of the file
    tensors  the tensors, in the same order
    Raises ResourceError for the disk, ValueError when a tensor is not the planned one.
    """
    path = Path(path)
    header = _header(plan, metadata)
    total = len(header) + sum(_nbytes(dtype, shape) for _, dtype, shape in plan)
    with atomic_file(path) as temporary, explained(path, total), open(temporary, "wb", buffering=0) as file:
        with _Hasher(temporary) as hasher:
            _write(file, memoryview(header), hasher)
            waiting = iter(tensors)
            for name, dtype, shape in plan:
                tensor = next(waiting, None)
                if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
                    got = "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
                    raise ValueError(f"{name} should be {dtype} {tuple(shape)}, got {got}")
                _write(file, _raw(tensor), hasher)
                del tensor
            if next(waiting, None) is not None:
                raise ValueError(f"more tensors than the {len(plan)} planned")
            digest = hasher.digest()
        os.fsync(file.fileno())
        remember_hash(file.fileno(), digest)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a few tensors as one safetensors file, sorted by name. Raises ResourceError."""
    named = sorted(tensors.items())
    plan = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in named]
    stream_tensors(path, plan, (tensor for _, tensor in named), metadata)


class Growing:
    """A safetensors file whose first tensor, of one dimension, grows; the header is written last."""

    def __init__(self, file: FileIO, name: str, dtype: torch.dtype) -> None:
        self._file, self._name, self._dtype, self.length = file, name, dtype, 0
        _write_all(file, memoryview(bytes(ROOM)))

    def append(self, tensor: Tensor) -> None:
        """Raises OSError, which `grown_tensors` explains; ValueError for another type."""
        if tensor.dtype != self._dtype:
            raise ValueError(f"{self._name} should be {self._dtype}, got {tensor.dtype}")
        _write_all(self._file, _raw(tensor))
        self.length += tensor.numel()

    def finish(self, others: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write the other tensors and the header. Raises ValueError for one that is too long."""
        plan: list[TensorPlan] = [(self._name, self._dtype, (self.length,))]
        plan += [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in others.items()]
        header = _header(plan, metadata, ROOM)
        for tensor in others.values():
            _write_all(self._file, _raw(tensor))
        self._file.seek(0)
        _write_all(self._file, memoryview(header))


@contextmanager
def grown_tensors(path: str | os.PathLike[str], name: str, dtype: torch.dtype) -> Iterator[Growing]:
    """Write a file whose first tensor comes in parts, all or nothing; `finish` it inside.

    Raises ResourceError.
    """
    path = Path(path)
    with atomic_file(path) as temporary, explained(path), open(temporary, "wb", buffering=0) as file:
        yield Growing(file, name, dtype)
        os.fsync(file.fileno())


class _Hasher:
    """The sha256 of a file while it is written: it follows the writer in a thread of its own, by what the
    system's cache holds of the file, so that the writer may reuse its memory at once. What it has hashed is
    sent on its way to the disk, which then works beside the rest instead of after it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._sha256, self._chunk = path, hashlib.sha256(), memoryview(bytearray(HASHED_AT_ONCE))
        self._at = 0
        self._behind: Future[None] | None = None

    def __enter__(self) -> _Hasher:
        self._file = open(self._path, "rb", buffering=0)
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._file.close()

    def follow(self, end: int) -> None:
        """So many bytes of the file are written. Raises what went wrong with those before."""
        if self._behind is not None and self._behind.done():
            self._behind.result()
        self._behind = self._thread.submit(self._to, end)

    def digest(self) -> str:
        """Of all that was followed. Raises OSError."""
        if self._behind is not None:
            self._behind.result()
        return self._sha256.hexdigest()

    def _to(self, end: int) -> None:
        begin = self._at
        while self._at < end:
            count = self._file.readinto(self._chunk[: end - self._at])
            if not count:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(self._path))
            self._sha256.update(self._chunk[:count])
            self._at += count
        start_writeback(self._file.fileno(), begin, end - begin)


def _write(file: FileIO, data: memoryview, hasher: _Hasher) -> None:
    for start in range(0, len(data), CHUNK):
        _write_all(file, data[start : start + CHUNK])
        hasher.follow(file.tell())


def _write_all(file: FileIO, data: memoryview) -> None:
    written = 0
    while written < len(data):
        written += file.write(data[written:])


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _header(plan: Sequence[TensorPlan], metadata: Mapping[str, str] | None, room: int | None = None) -> bytes:
    """room  bytes that it fills, length and all; None: as many as it needs."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in plan:
        if name in entries or name == "__metadata__":
            raise ValueError(f"{name} is planned twice, or is no name for a tensor")
        end = offset + _nbytes(dtype, shape)
        entries[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    if room is not None and len(text) > room - 8:
        raise ValueError(f"{len(text)} bytes of header, but there is room for {room - 8}")
    # the format asks for tensors that start on multiples of 8
    text += b" " * (-len(text) % 8 if room is None else room - 8 - len(text))
    return struct.pack("<Q", len(text)) + text


def _nbytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return math.prod(shape) * dtype.itemsize


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file; the tensors are private copies.

    Raises ModelError, naming the file and the tensor, for whatever is not exactly the format.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ModelError("is missing", str(path))
    infos, metadata = read_header(path)
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ModelError("has metadata that is not text", str(path))
    try:
        with path.open("rb", buffering=0) as file:
            return {name: _read_tensor(file, name, info) for name, info in infos.items()}, metadata
    except OSError as error:
        raise unreadable(error, path) from None


def _read_tensor(file: FileIO, name: str, info: TensorInfo) -> Tensor:
    if info.nbytes == 0:
        return torch.empty(info.shape, dtype=info.dtype)
    data = bytearray(info.nbytes)
    file.seek(info.offset)
    done = 0
    while done < info.nbytes:
        count = file.readinto(memoryview(data)[done:])
        if not count:
            raise ModelError(f"{name} was cut short", str(info.file), "copy it again")
        done += count
    return torch.frombuffer(data, dtype=info.dtype).view(info.shape)
