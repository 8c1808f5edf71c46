"""Folders of files for tests: writing one, seeing all of one, and a disk that refuses."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from neuroada_cli import files


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Every entry below a folder with its content: bytes of files, targets of links."""
    found: dict[str, bytes | str | None] = {}
    for entry in sorted(folder.rglob("*")):
        name = entry.relative_to(folder).as_posix()
        found[name] = (
            os.readlink(entry) if entry.is_symlink() else entry.read_bytes() if entry.is_file() else None
        )
    return found


def write_folder(path: Path, text: str = "one", overwrite: bool = False) -> None:
    with files.atomic_folder(path, overwrite=overwrite) as folder:
        files.write_text(folder / "a.txt", text)
        files.write_tensors(folder / "t.safetensors", {"x": torch.arange(5.0)})
        (folder / "inner").mkdir()
        files.write_json(folder / "inner" / "b.json", {"text": text})


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
