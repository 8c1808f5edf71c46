"""The weights of a folder that holds them only as pickles, read by a process that can do nothing else.

`hub.unpickle` is that process; here it is started, and what it says is checked as a stranger's words are.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from neuroada_cli.errors import ModelError, ResourceError
from neuroada_cli.files.shards import read_index
from neuroada_cli.files.tensors import DTYPES

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
READER = Path(__file__).with_name("unpickle.py")
KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")  # of the environment, which may hold secrets
MAX_LINE = 64 << 20
MAX_NAME = 512
# A storage that two names share is written out twice (tied weights); what is declared beyond that is made up.
MOST_TIMES, SPARE_BYTES = 3, 1 << 20
TYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}

TensorPlan = tuple[str, torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Shard:
    """One file. plan: its tensors as they come; tensors: each valid until the next, to be taken in order."""

    file: Path
    plan: list[TensorPlan]
    tensors: Iterator[Tensor]

    @property
    def nbytes(self) -> int:
        return sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in self.plan)


def pickled_files(folder: Path) -> list[Path]:
    """The files that transformers would unpickle, in the order of the shards; none for another folder.

    Raises ModelError for an index that is broken or names what is not there.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        return []
    named = sorted(set(_index(folder).values()))
    for name in named:
        if not (folder / name).is_file():
            raise ModelError(f"{name} is missing", str(folder), "download or copy the model again")
    return [folder / name for name in named]


@contextmanager
def reading(folder: Path) -> Iterator[Iterator[Shard]]:
    """Inside, the shards of a folder, one after the other: all tensors of one have to be taken before the
    next is asked for.

    Raises ModelError, naming the file, for pickles that hold anything but tensors by name, and for shards
    that are not what the index says; ResourceError where no process can be shut off from the network.
    """
    paths = pickled_files(folder)
    where = _index(folder) if paths != [folder / SINGLE] else None
    environment = {key: os.environ[key] for key in KEPT if key in os.environ}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(READER), *(str(path.resolve()) for path in paths)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            yield _shards(process.stdout, paths, where)
        finally:
            process.kill()


def _shards(stream: IO[bytes], paths: list[Path], where: Mapping[str, str] | None) -> Iterator[Shard]:
    seen: set[str] = set()
    for path in paths:
        plan = _plan(stream, path)
        for name, _, _ in plan:
            if name in seen:
                raise ModelError(f"holds {name}, which another file holds, too", str(path))
            if where is not None and where.get(name) != path.name:
                place = where.get(name, "nowhere")
                raise ModelError(f"{name} is in {path.name}, but {INDEX} puts it {place}", str(path.parent))
            seen.add(name)
        shard = Shard(path, plan, _tensors(stream, path, plan))
        if shard.nbytes > MOST_TIMES * path.stat().st_size + SPARE_BYTES:
            raise ModelError(f"declares {shard.nbytes:,} bytes of tensors, more than it can hold", str(path))
        yield shard
    lost = next((name for name in where or () if name not in seen), None)
    if where is not None and lost is not None:
        raise ModelError(f"{INDEX} puts {lost} in {where[lost]}, which lacks it", str(paths[0].parent))


def _plan(stream: IO[bytes], path: Path) -> list[TensorPlan]:
    line = stream.readline(MAX_LINE)
    try:
        said = json.loads(line) if line else {"error": "ended the process that read it"}
    except ValueError:
        said = {}
    if "open" in said:
        raise ResourceError(
            f"pickles are only opened by a process without a network, and none can be made ({said['open']})",
            str(path),
            "convert it on Linux",
        )
    if "error" in said:
        raise ModelError(str(said["error"])[:200], str(path), "take a copy of the model with safetensors")
    plan = [_entry(entry) for entry in said.get("tensors", ())]
    if not plan or None in plan:
        raise ModelError("holds a tensor whose name, type or shape safetensors cannot hold", str(path))
    return [entry for entry in plan if entry is not None]


def _entry(entry: Any) -> TensorPlan | None:
    """(name, dtype, shape), or None for what no safetensors header can say."""
    name, dtype, shape = entry
    fits = (
        isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME
        and name != "__metadata__" and dtype in TYPES
        and all(type(size) is int and size >= 0 for size in shape)
    )  # fmt: skip
    return (name, TYPES[dtype], tuple(shape)) if fits else None


def _tensors(stream: IO[bytes], path: Path, plan: list[TensorPlan]) -> Iterator[Tensor]:
    for name, dtype, shape in plan:
        data = bytearray(math.prod(shape) * dtype.itemsize)
        done = 0
        while done < len(data):
            count = stream.readinto(memoryview(data)[done:])  # type: ignore[attr-defined]
            if not count:
                raise ModelError(f"{name} was cut short", str(path), "copy it again")
            done += count
        yield torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)


def _index(folder: Path) -> dict[str, str]:
    return read_index(folder / INDEX, ".bin")
