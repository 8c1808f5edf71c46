"""The tensors of a model folder: which file holds each, and one of them at a time.

Headers are parsed here rather than by a library because a wrong header must name the file and the tensor,
and because nothing but the header may be read to learn what a 13 GB folder holds.
"""

from __future__ import annotations

import math
import mmap
import re
import warnings
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from neuroada_cli.errors import ModelError, unreadable
from neuroada_cli.files.folders import is_adapter
from neuroada_cli.files.safetensors_header import TensorInfo
from neuroada_cli.files.shards import INDEX, SINGLE, headers, read_index

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# what transformers unpickles; trainers leave other pickles beside it
PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
ANY_WEIGHTS = re.compile(
    r".*\.(safetensors|gguf)|(pytorch_model|consolidated).*\.(bin|pth?)|(tf|flax)_model\.(h5|msgpack)"
)


class Weights:
    """The tensors of a folder, sharded or not, in the order in which they lie on disk."""

    def __init__(self, folder: Path, infos: dict[str, TensorInfo], metadata: dict[str, str]) -> None:
        self.folder = folder
        self.metadata = metadata
        self._infos = infos

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Name -> where it lies."""
        return dict(self._infos)

    @property
    def names(self) -> list[str]:
        return list(self._infos)

    @property
    def files(self) -> list[Path]:
        """The weight files, in the order of the shards."""
        return list(dict.fromkeys(info.file for info in self._infos.values()))

    @property
    def passed_over(self) -> list[str]:
        """Other weights in the folder that are not read, neither here nor by transformers: an index of shards
        beside a single file, stale shards, copies in another format.
        """
        used = {file.name for file in self.files}
        other = SINGLE in used and (self.folder / INDEX).is_file() and _names_others(self.folder / INDEX)
        there = sorted(entry.name for entry in self.folder.iterdir() if ANY_WEIGHTS.fullmatch(entry.name))
        return [*([INDEX] if other else []), *(name for name in there if name not in used)]

    @property
    def parameters(self) -> int:
        """How many numbers they hold (a tied weight is stored, and counted, once)."""
        held = self._infos.values()
        return sum(math.prod(info.shape) for info in held if info.dtype.is_floating_point)

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self._infos.values())

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Raises ModelError for a name that the folder does not hold."""
        if name not in self._infos:
            raise ModelError(f"holds no tensor {name}", str(self.folder))
        return self._infos[name]

    def tensor(self, name: str, part: slice = slice(None)) -> Tensor:
        """One tensor over a private mapping of its bytes: unmapped with the tensor, never a second copy.

        part  of its first dimension: nothing but these bytes is read
        Writing to it copies the touched pages only and leaves the file alone.
        """
        info = self.info(name)
        shape, begin = info.shape, info.offset
        if part != slice(None):
            first, last, _ = part.indices(shape[0])
            shape = (max(0, last - first), *shape[1:])
            begin += first * math.prod(shape[1:]) * info.dtype.itemsize
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=info.dtype)
        nbytes = count * info.dtype.itemsize
        start = begin - begin % mmap.ALLOCATIONGRANULARITY
        try:
            with info.file.open("rb") as file:
                mapped = mmap.mmap(
                    file.fileno(), begin + nbytes - start, access=mmap.ACCESS_COPY, offset=start
                )
        except OSError as error:
            raise unreadable(error, info.file, what=f"{name} cannot be read") from None
        except ValueError as error:
            raise ModelError(f"{name} cannot be read: {error}", str(info.file)) from None
        _populate(mapped)
        offset = begin - start
        if offset % info.dtype.itemsize:  # the format allows it, element-wise loads do not
            data = torch.frombuffer(bytearray(mapped[offset : offset + nbytes]), dtype=info.dtype)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = torch.frombuffer(mapped, dtype=info.dtype, count=count, offset=offset)
        return data.view(shape)

    def read_into(self, name: str, buffer: Tensor) -> Tensor:
        """One tensor read into `buffer` (uint8, at least the tensor's bytes) and viewed as what it is.

        For walking through whole files: pages that are reused cost far less than new ones per tensor. The
        tensor is valid until the buffer is used again.
        """
        info = self.info(name)
        target = buffer.numpy().data[: info.nbytes]
        try:
            with info.file.open("rb", buffering=0) as file:
                file.seek(info.offset)
                done = 0
                while done < info.nbytes:
                    count = file.readinto(target[done:])
                    if not count:
                        raise ModelError(f"{name} was cut short", str(info.file), "copy it again")
                    done += count
        except OSError as error:
            raise unreadable(error, info.file, what=f"{name} cannot be read") from None
        return buffer[: info.nbytes].view(info.dtype).view(info.shape)


def _populate(mapped: mmap.mmap) -> None:
    """Bring the pages in by one call; faulting them one by one is several times slower."""
    populate_read = 22  # MADV_POPULATE_READ, Linux 5.14; not named by Python's mmap
    try:
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        mapped.madvise(populate_read)
    except (OSError, AttributeError, ValueError):
        pass


def open_weights(folder: Path) -> Weights:
    """The tensors of a model folder, every header checked against its file's size.

    Raises ModelError for missing, truncated or contradictory files, naming the file.
    """
    found = headers(folder)
    if found is None:
        _explain_missing(folder)
    return Weights(folder, *found)


def weights_passed_over(weights: Weights) -> str | None:
    """What is to be said of a folder with more weights than are read; None: there are no others."""
    others = weights.passed_over
    if not others:
        return None
    used = [file.name for file in weights.files]
    shown, more = ", ".join(others[:4]), f" and {len(others) - 4} more" if len(others) > 4 else ""
    taken = used[0] if len(used) == 1 else f"{used[0]} and the {len(used) - 1} other files of its index"
    return f"{weights.folder.name}: weights are read from {taken}; not from {shown}{more}"


def holds_weights(folder: Path) -> bool:
    """Whether a folder has the safetensors files of a model, whole."""
    try:
        open_weights(folder)
    except ModelError:
        return False
    return True


def shard_name(number: int, count: int) -> str:
    """The file name that transformers gives shard `number` (from 1) of `count`."""
    return SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def stored_name(weights: Container[str], parameter: str, prefix: str) -> str | None:
    """The files' name of a parameter of the model, with the prefix as it is, removed or added; or None."""
    spellings = [parameter]
    if prefix:
        spellings += [parameter.removeprefix(f"{prefix}."), f"{prefix}.{parameter}"]
    return next((name for name in spellings if name in weights), None)


def _names_others(index: Path) -> bool:
    """Whether an index beside a single file is of other files."""
    try:
        return set(read_index(index).values()) != {SINGLE}
    except ModelError:
        return True


def _explain_missing(folder: Path) -> NoReturn:
    if is_adapter(folder):
        raise ModelError(
            "is an adapter, not a model", str(folder), "name its base, or merge it first: neuroada merge"
        )
    pickles = sorted(entry.name for entry in folder.iterdir() if PICKLED.fullmatch(entry.name))
    if pickles:
        raise ModelError(
            f"holds only pickled weights ({pickles[0]}), which can run code when opened",
            str(folder),
            f"convert them once: neuroada convert {folder}",
        )
    others = sorted(
        entry.name for entry in folder.iterdir() if entry.suffix in {".bin", ".pt", ".pth", ".ckpt"}
    )
    if others:
        raise ModelError(
            f"holds only pickles ({others[0]}), and none under a name that transformers reads weights from",
            str(folder),
            "take a copy of the model with model.safetensors",
        )
    shards = sorted(p.name for p in folder.glob("*.safetensors"))
    if shards:
        raise ModelError(f"holds {shards[0]} but neither {SINGLE} nor {INDEX}", str(folder))
    raise ModelError(f"holds no weights ({SINGLE})", str(folder))


# ---------------------------------------------------------------------------------------------------
# One safetensors header: 8 bytes length, JSON, raw tensors
