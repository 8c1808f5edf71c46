"""Ranks of a run as forked children: they share what the test has imported, and talk over gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.nn  # noqa: F401  (what ranks need, imported once for all)
import pytest
import torch
import torch.distributed.fsdp
from forked import child
from packaging.version import Version

from neuroada_cli.errors import UserError
from neuroada_cli.ranks.group import Ranks, join, leave
from neuroada_cli.training import fit

shards = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.12"), reason="torch 2.11 cannot shard whole numbers"
)
PATIENCE = 240  # seconds


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without picture and report, which take as long to draw as a tiny run to train."""
    monkeypatch.setattr(fit, "_draw", lambda *given: None)


def in_ranks(size: int, folder: Path, work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` returned on each rank (JSON). Raises AssertionError with the traceback of one that failed.

    A UserError is no failure: its exit code and line are returned, as {"code", "line"}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    children = [child(lambda number=number: _run(number, size, port, folder, work)) for number in range(size)]
    codes = [_waited(pid) for pid in children]
    told = [folder / f"rank{number}.json" for number in range(size)]
    failed = [file.read_text() for file in (folder / f"rank{n}.txt" for n in range(size)) if file.exists()]
    assert not failed, failed[0]
    assert codes == [0] * size, f"exit codes {codes}"
    return [json.loads(file.read_text()) for file in told]


def _waited(pid: int) -> int:
    """Its exit code. One that hangs is killed."""
    until = time.monotonic() + PATIENCE
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _run(number: int, size: int, port: int, folder: Path, work: Callable[[Ranks], Any]) -> None:
    torch.set_num_threads(1)
    places = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        ranks = join()
        try:
            result, well = work(ranks), True
        except UserError as error:
            result, well = {"code": error.exit_code, "line": error.line()}, False
        (folder / f"rank{number}.json").write_text(json.dumps(result))
        if well:  # else it ends at once, as the command does
            leave(ranks)
    except BaseException:
        (folder / f"rank{number}.txt").write_text(traceback.format_exc())
        raise
