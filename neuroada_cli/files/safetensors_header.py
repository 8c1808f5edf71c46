"""What lies in a safetensors file: its header, read strictly.

Parsed here rather than by a library because a wrong header must name the file and the tensor, and because
nothing but the header may be read to learn what a 13 GB folder holds.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neuroada_cli.errors import ModelError, unreadable

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reference reader
MAX_DIMENSIONS, MAX_STRIDE = 16, 1 << 56  # what torch takes without overflowing, also where a size is 0
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. offset and nbytes are bytes, offset from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Name -> TensorInfo in file order, and the metadata of one safetensors file; its size is checked.

    Raises ModelError naming the file (and the tensor, where one is at fault).
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ModelError(f"is not a safetensors file, or was cut short ({size} bytes)", str(path))
            entries = json.loads(file.read(length).decode(), object_pairs_hook=_no_duplicates)
        if not isinstance(entries, dict):
            raise ValueError("not a mapping")
    except OSError as error:
        raise unreadable(error, path) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"has a broken safetensors header ({error})", str(path)) from None
    metadata = entries.pop("__metadata__", {})
    data = 8 + length
    infos = {name: _tensor_info(path, name, entry, data) for name, entry in entries.items()}
    infos = dict(sorted(infos.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    end = data
    for name, info in infos.items():
        if info.offset != end:
            raise ModelError(f"{name} overlaps another tensor or leaves a gap", str(path))
        end = info.offset + info.nbytes
    if end != size:
        problem = "was cut short" if end > size else "has bytes behind its tensors"
        raise ModelError(f"{problem}: {size} bytes, its header says {end}", str(path), "copy it again")
    return infos, metadata if isinstance(metadata, dict) else {}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _tensor_info(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not isinstance(code, str) or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError("sizes are whole numbers")
        if len(shape) > MAX_DIMENSIONS or math.prod(n or 1 for n in shape) > MAX_STRIDE:
            raise ValueError("no tensor has such a shape")
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{name} has a broken header entry", str(path)) from None
    if code not in DTYPES:
        raise ModelError(f"{name} has the data type {code}, which is not supported", str(path))
    if end - begin != math.prod(shape) * DTYPES[code].itemsize:
        raise ModelError(f"{name} takes {end - begin} bytes, but its shape is {list(shape)}", str(path))
    return TensorInfo(DTYPES[code], shape, path, data + begin, end - begin)
