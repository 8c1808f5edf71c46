"""Safetensors files: written tensor by tensor and hashed on the way, read strictly.

Written by our own code because the format's library takes all tensors at once and hides what the disk said.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli.errors import ModelError, unreadable
from neuroada_cli.files.atomic import atomic_file
from neuroada_cli.files.disk import explained
from neuroada_cli.files.hashed import HashedFile
from neuroada_cli.files.manifest import remember_hash
from neuroada_cli.files.safetensors_header import TYPES, TensorInfo, read_header

ROOM = 8192  # of a header that is written last
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
        with HashedFile(file, total) as hashed:
            hashed.write(memoryview(header))
            waiting = iter(tensors)
            for name, dtype, shape in plan:
                tensor = next(waiting, None)
                if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
                    got = "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
                    raise ValueError(f"{name} should be {dtype} {tuple(shape)}, got {got}")
                hashed.write(_raw(tensor))
                del tensor
            if next(waiting, None) is not None:
                raise ValueError(f"more tensors than the {len(plan)} planned")
            digest = hashed.finish()
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
