"""One process per folder, and the others are told which."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trees import file_size_limit

from neuroada_cli import files
from neuroada_cli.errors import OutputError, ResourceError


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
    children = []
    for _ in range(50):
        pid = os.fork()
        if pid == 0:
            os.close(opened)
            os.close(release)
            _race(tmp_path / "run", gate, told, held)
        children.append(pid)
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
    finally:
        os._exit(0)


def test_a_dead_holder_frees_the_lock(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with files.Lock(tmp_path):
            os.write(tell, b"x")
            time.sleep(60)
        os._exit(1)
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
