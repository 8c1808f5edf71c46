"""One process per folder, and the others are told which."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import child
from trees import file_size_limit

from neuroada_cli import files
from neuroada_cli.errors import OutputError, ResourceError
from neuroada_cli.files import lock as lock_module


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    with files.Lock(tmp_path / "run"):
        script = (
            "import sys; from neuroada_cli import files\n"
            "from neuroada_cli.errors import OutputError\n"
            "try:\n    files.Lock(sys.argv[1]).__enter__()\n"
            "except OutputError as error:\n    print(error.line()); sys.exit(error.exit_code)\n"
        )
        command = [sys.executable, "-c", script, str(tmp_path / "run")]
        other = subprocess.run(command, capture_output=True, text=True)
    assert other.returncode == 7, other.stderr
    assert f"is in use by process {os.getpid()} on {socket.gethostname()}" in other.stdout
    with files.Lock(tmp_path / "run"):
        pass


def test_of_fifty_racing_locks_one_wins_and_the_others_name_it(tmp_path: Path) -> None:
    gate, opened = os.pipe()
    results, told = os.pipe()
    held, release = os.pipe()

    def work() -> None:
        os.close(opened)
        os.close(release)
        _race(tmp_path / "run", gate, told, held)

    children = [child(work) for _ in range(50)]
    os.close(told)
    os.close(opened)  # all of them at once
    lines = []
    with os.fdopen(results) as stream:
        for line in stream:
            lines.append(line)
            if len(lines) == 50:
                break
    os.close(release)
    for pid in children:
        os.waitpid(pid, 0)
    winners = [line for line in lines if line.startswith("won")]
    assert len(lines) == 50
    assert len(winners) == 1
    name = f"process {winners[0].split()[1]} on {socket.gethostname()}"
    assert all(name in line for line in lines if line not in winners)


def _race(folder: Path, gate: int, told: int, held: int) -> None:
    os.read(gate, 1)
    try:
        with files.Lock(folder):
            os.write(told, f"won {os.getpid()}\n".encode())
            os.read(held, 1)  # until everyone has tried
    except OutputError as error:
        os.write(told, f"{error.line()}\n".encode())


def test_a_dead_holder_frees_the_lock(tmp_path: Path) -> None:
    ready, tell = os.pipe()

    def work() -> None:
        with files.Lock(tmp_path):
            os.write(tell, b"x")
            signal.pause()

    pid = child(work)
    os.read(ready, 1)
    with pytest.raises(OutputError, match=f"process {pid} on"):
        files.Lock(tmp_path).__enter__()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with files.Lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_lock_that_cannot_be_written_is_not_kept(tmp_path: Path) -> None:
    with file_size_limit(0), pytest.raises(ResourceError):
        files.Lock(tmp_path).__enter__()
    with files.Lock(tmp_path):
        pass


def locked_first(do: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `do` once, in the instant between the opening of a lock's file and the locking of it."""
    real, done = fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        if not done:
            done.append(True)
            do()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_holder_that_leaves_while_another_opens_the_file_leaves_one_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was opened is the one taken away; whoever comes next makes a new one."""
    first, next_one = files.Lock(tmp_path), files.Lock(tmp_path)
    first.__enter__()

    def leave_and_enter() -> None:
        first.__exit__(None, None, None)
        next_one.__enter__()

    locked_first(leave_and_enter, monkeypatch)
    with pytest.raises(OutputError, match="is in use by"):
        files.Lock(tmp_path).__enter__()
    next_one.__exit__(None, None, None)
    with files.Lock(tmp_path):
        pass


def test_a_leaving_holder_takes_away_its_own_file_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gets in at any instant of its leaving keeps everybody else out."""
    real, holders = os.close, []

    def close(descriptor: int) -> None:
        real(descriptor)
        if not holders:
            holders.append(files.Lock(tmp_path))
            holders[0].__enter__()

    first = files.Lock(tmp_path)
    first.__enter__()
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        first.__exit__(None, None, None)
    assert holders
    with pytest.raises(OutputError, match="is in use by"):
        files.Lock(tmp_path).__enter__()
    holders[0].__exit__(None, None, None)


def test_a_holder_that_is_long_dead_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file stays, and the next holder has it for an instant before it writes its own name."""
    monkeypatch.setattr(lock_module, "NAME_TRIES", 2)
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    (tmp_path / ".lock").write_text(json.dumps({"pid": gone, "host": socket.gethostname()}))
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match="is in use by another process"):
        files.Lock(tmp_path).__enter__()
    os.close(descriptor)
