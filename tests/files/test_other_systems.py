"""On a system without flock, folders that open, POSIX limits or a C library to look into: as on Windows."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import pico_llama
from tiny_tokenizer import SIZE, byte_tokenizer

from neuroada_cli import files
from neuroada_cli.errors import OutputError
from neuroada_cli.files import system

# What Windows lacks, taken away before anything of ours is imported; `neuroada ...` follows.
WITHOUT = """
import builtins, ctypes, os, shutil, signal, subprocess, sys, tempfile, types
for name in ("O_DIRECTORY", "O_CLOEXEC", "O_NOFOLLOW", "pwrite", "pread"):
    delattr(os, name)
del signal.SIGHUP
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda descriptor, mode, nbytes: None)
shutil._use_fd_functions = False
real_open, real_rename, real_library, real_import = os.open, os.rename, ctypes.CDLL, builtins.__import__

def no_posix(name, names=None, *more, **named):  # of others, their Linux builds are here
    if name in ("fcntl", "resource") and (names or {}).get("__name__", "").startswith("neuroada_cli"):
        raise ImportError(f"No module named {name!r}")
    return real_import(name, names, *more, **named)

def no_folders(path, *more, **named):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return real_open(path, *more, **named)

def no_way_over(source, target):
    if os.path.lexists(target):
        raise FileExistsError(17, "File exists", str(target))
    return real_rename(source, target)

def only_named(name=None, *more, **named):
    if name is None and sys._getframe(1).f_globals["__name__"].startswith("neuroada_cli.files"):
        raise TypeError("argument of type 'NoneType' is not iterable")
    return real_library(name, *more, **named)

os.open, os.rename, ctypes.CDLL, builtins.__import__ = no_folders, no_way_over, only_named, no_posix
from neuroada_cli.__main__ import main
sys.argv[0] = "neuroada"
main()
"""


@pytest.mark.slow
def test_a_run_is_trained_merged_and_scored(tmp_path: Path) -> None:
    base = tmp_path / "base"
    pico_llama(vocabulary=SIZE, max_position_embeddings=512).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "1 + 1?", "output": "2"}\n' * 8)
    (tmp_path / "own.yaml").write_text(
        f"name: own\nmodel: {{path: {base}, dtype: fp32}}\nselect: {{k: 1}}\n"
        "data: {task: instruct, train: rows.jsonl, validation_rows: 2}\n"
        "optim: {lr: 0.01}\ntrain: {max_steps: 4, save_every: 2, batch_size: 2}\n"
    )

    def neuroada(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT, *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "merged").mkdir()  # empty, which POSIX would rename over
    neuroada("train", "own.yaml")
    assert (tmp_path / "runs" / "own" / "last" / "adapter_model.safetensors").is_file()
    assert "weights changed" in neuroada("merge", "runs/own", "merged")
    neuroada("merge", "runs/own", "merged", "--overwrite")
    neuroada("eval", "merged", "--recipe", "own.yaml", "--limit", "2", "--max-new-tokens", "4")
    assert (tmp_path / "merged" / "eval" / "results.json").is_file()
    left = [path for path in tmp_path.rglob(".*") if "cache" not in str(path)]
    assert not left, "temporaries or locks"


class Bytes:
    """`msvcrt.locking` as its documentation has it: one byte of a file, for one descriptor at a time."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: dict[tuple[int, int, int], int] = {}

    def locking(self, descriptor: int, mode: int, nbytes: int) -> None:
        about = os.fstat(descriptor)
        place = (about.st_dev, about.st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        assert (mode, nbytes) == (self.LK_NBLCK, 1)
        holder = self.held.get(place)
        if holder is not None and _is_open(holder, about) and holder != descriptor:
            raise PermissionError(errno.EACCES, "Permission denied")
        self.held[place] = descriptor


def _is_open(descriptor: int, about: Any) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), about)
    except OSError:
        return False


def test_a_lock_of_a_byte_keeps_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "msvcrt", Bytes())
    with (
        files.Lock(tmp_path / "run"),
        pytest.raises(OutputError, match=f"in use by process {os.getpid()}"),
        files.Lock(tmp_path / "run"),
    ):
        pass
    assert not (tmp_path / "run").exists()
    with files.Lock(tmp_path / "run"):
        pass


def test_without_any_lock_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "fcntl", None)
    with files.Lock(tmp_path / "run"), files.Lock(tmp_path / "run"):
        pass
    with files.atomic_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("a")
    with files.atomic_folder(tmp_path / "made", overwrite=True) as folder:
        (folder / "a").write_text("b")
    assert (tmp_path / "made" / "a").read_text() == "b"


def test_a_process_of_windows_is_not_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, os.kill(pid, 0) is Ctrl-C for a whole console."""
    monkeypatch.setattr(system, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("it was signalled"))
    assert system.lives(2**22 + 1)
