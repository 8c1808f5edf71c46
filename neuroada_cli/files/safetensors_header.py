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
from typing import TYPE_CHECKING, Any

from neuroada_cli.errors import ModelError, unreadable

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reference reader
MAX_DIMENSIONS, MAX_STRIDE = 16, 1 << 56  # what torch takes without overflowing, also where a size is 0
# The format's name of a type -> torch's name and bytes per number: without torch, whose import takes seconds,
# so that a folder can be looked at before.
TYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),  # scales of blocks
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
}
PACKED_TYPES = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # less than a byte each: bits per number


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. code is the format's name of its type, offset and nbytes are bytes, offset from
    the start of the file.
    """

    code: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def dtype(self) -> torch.dtype:
        import torch

        found = getattr(torch, TYPES[self.code][0])
        assert isinstance(found, torch.dtype)
        return found


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
    if code in PACKED_TYPES:
        raise ModelError(
            f"{name} is stored packed ({code}: {PACKED_TYPES[code]} bits each), which cannot be trained on",
            str(path),
            "take a copy in 16 bits; model.quantization: nf4 trains that in 4 bits",
        )
    if code not in TYPES:
        raise ModelError(f"{name} has the data type {code}, which is not supported", str(path))
    if end - begin != math.prod(shape) * TYPES[code][1]:
        raise ModelError(f"{name} takes {end - begin} bytes, but its shape is {list(shape)}", str(path))
    return TensorInfo(code, shape, path, data + begin, end - begin)
