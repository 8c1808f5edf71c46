"""Safetensors files: written tensor by tensor and hashed on the way, read strictly.

Written by our own code because the format's library takes all tensors at once and hides what the disk said.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli.errors import ModelError, unreadable
from neuroada_cli.files.atomic import atomic_file
from neuroada_cli.files.disk import explained
from neuroada_cli.files.manifest import remember_hash
from neuroada_cli.files.safetensors_header import DTYPES, TensorInfo, read_header

CHUNK = 8 << 20
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
        with ThreadPoolExecutor(1) as hasher:
            digest = hashlib.sha256()
            _write(file, memoryview(header), digest, hasher)
            waiting = iter(tensors)
            for name, dtype, shape in plan:
                tensor = next(waiting, None)
                if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
                    got = "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
                    raise ValueError(f"{name} should be {dtype} {tuple(shape)}, got {got}")
                _write(file, _raw(tensor), digest, hasher)
                del tensor
            if next(waiting, None) is not None:
                raise ValueError(f"more tensors than the {len(plan)} planned")
        os.fsync(file.fileno())
        remember_hash(file.fileno(), digest.hexdigest())


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a few tensors as one safetensors file, sorted by name. Raises ResourceError."""
    named = sorted(tensors.items())
    plan = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in named]
    stream_tensors(path, plan, (tensor for _, tensor in named), metadata)


def _write(file: Any, data: memoryview, digest: Any, hasher: ThreadPoolExecutor) -> None:
    """The disk and the hash work on the same chunk at the same time (both release the interpreter lock)."""
    for start in range(0, len(data), CHUNK):
        chunk = data[start : start + CHUNK]
        hashed = hasher.submit(digest.update, chunk)
        try:
            written = 0
            while written < len(chunk):
                written += file.write(chunk[written:])
        finally:
            hashed.result()


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _header(plan: Sequence[TensorPlan], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in plan:
        if name in entries or name == "__metadata__":
            raise ValueError(f"{name} is planned twice, or is no name for a tensor")
        end = offset + _nbytes(dtype, shape)
        entries[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format asks for tensors that start on multiples of 8
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
