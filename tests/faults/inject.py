"""At call 1, 2, ... of a write path, until it has no more calls: kill, tear, full disk, failing disk.

    LD_PRELOAD=shim.so python tests/faults/inject.py shim.so report.json SCENARIO ...

Every case runs in a forked child of a process that has everything imported, on a copy of what the scenario
prepared. A kill leaves the page cache alone: this proves the order of the calls, not that of the disk.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from neuroada_cli import files
from neuroada_cli.errors import UserError

KILL, TEAR, FAIL = 1, 2, 3
FINISHED, DONE_ALL_THE_SAME, BUG = 100, 101, 70
RESOURCES = 6
MOST_CALLS = 2000


@dataclass(frozen=True)
class Fault:
    kind: int
    error: int = 0
    sticky: bool = False  # a full disk stays full


FAULTS = {
    "kill": Fault(KILL),
    "torn write": Fault(TEAR),
    "ENOSPC": Fault(FAIL, errno.ENOSPC, sticky=True),
    "EIO": Fault(FAIL, errno.EIO),
}


@dataclass(frozen=True)
class Scenario:
    """One way in which something is written.

    prepare   fills an empty folder with what is there before
    act       writes
    state     "absent", "old" or "new"; raises for anything else, which is what must never be
    between   another state that may be found: the old one is gone as was asked for, the new one not there yet
    exchange  False: the file system cannot exchange two names, so the old folder has to step aside and is
              back only after clean_stale
    passed_over  calls that may fail without a word, if all is done all the same
    """

    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    state: Callable[[Path], str]
    exchange: bool = True
    between: str | None = None
    passed_over: frozenset[str] = frozenset()


def inject(scenario: Scenario, fault: Fault, shim: ctypes.CDLL, room: Path) -> Counter[str]:
    """How often each state was found. Raises AssertionError at the first one that must not be."""
    found: Counter[str] = Counter()
    prepared = room / "prepared"
    prepared.mkdir()
    scenario.prepare(prepared)
    before = scenario.state(prepared)
    for call in range(1, MOST_CALLS):
        folder = room / "case"
        shutil.copytree(prepared, folder, symlinks=True)
        status = _run(scenario, fault, call, shim, folder)
        state = _judge(scenario, fault, status, folder, f"call {call}")
        shutil.rmtree(folder)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == FINISHED:
            assert state == "new", f"call {call}: finished, but the state is {state}"
            shutil.rmtree(prepared)
            return found
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == DONE_ALL_THE_SAME:
            assert state == "new", f"call {call}: a failure was passed over, and the state is {state}"
        assert state in {before, "new", scenario.between}, f"call {call}: {state} after {before}"
        found[f"after {outcome(state, before)}"] += 1
    raise AssertionError(f"still not done after {MOST_CALLS} calls")


def outcome(state: str, before: str) -> str:
    return "as before" if state == before else "complete" if state == "new" else "on the way"


def _run(scenario: Scenario, fault: Fault, call: int, shim: ctypes.CDLL, folder: Path) -> int:
    """The status of a child that died, gave up, or did all it had to do."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    code = BUG
    try:
        shim.faults_arm(
            fault.kind, ctypes.c_long(call), fault.error, int(fault.sticky), int(not scenario.exchange)
        )
        scenario.act(folder)
        calls = shim.faults_count()
        shim.faults_arm(0, ctypes.c_long(0), 0, 0, 0)
        code = FINISHED if calls < call else _unnoticed(shim, scenario)
    except UserError as error:
        code = error.exit_code
    except BaseException:
        shim.faults_arm(0, ctypes.c_long(0), 0, 0, 0)
        traceback.print_exc()
    finally:
        os._exit(code)


def _unnoticed(shim: ctypes.CDLL, scenario: Scenario) -> int:
    """A failure that was passed over is a bug, except where there is another way: a folder that was to be
    made is there already, a file that was to be copied inside the kernel is read and written instead.
    """
    name = shim.faults_failed().decode()
    if name in {"mkdir", "sendfile64"} | scenario.passed_over:
        return DONE_ALL_THE_SAME
    print(f"{name} failed and nobody noticed", file=sys.stderr)
    return BUG


def _judge(scenario: Scenario, fault: Fault, status: int, folder: Path, where: str) -> str:
    """The state after it is checked, cleaned, and checked again."""
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"{where}: signal {os.WTERMSIG(status)}"
    else:
        code = os.WEXITSTATUS(status)
        assert code in (FINISHED, DONE_ALL_THE_SAME, RESOURCES), f"{where}: exit {code}"
    at_once = scenario.state(folder) if scenario.exchange else None
    # where even giving back the old name was refused, it is clean_stale that does so
    if os.WIFEXITED(status) and (scenario.exchange or not fault.sticky):
        assert not _temporaries(folder), f"{where}: left {_temporaries(folder)}"
    files.clean_stale(folder)
    assert not _temporaries(folder), f"{where}: not cleaned: {_temporaries(folder)}"
    state = scenario.state(folder)
    assert at_once in (state, None), f"{where}: {at_once} became {state} by cleaning"
    return state


def _temporaries(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if ".tmp-" in entry.name or ".was-" in entry.name]


def main(shim_path: str, report: str, *names: str) -> int:
    from scenarios import SCENARIOS

    # what the tests' shared modules set; a child has none of its parent's threads, and would wait for them
    torch.set_num_threads(1)
    shim = ctypes.CDLL(shim_path)
    shim.faults_failed.restype = ctypes.c_char_p
    room = Path(tempfile.mkdtemp(dir=os.environ.get("FAULTS_ROOM")))
    results: dict[str, dict[str, dict[str, int]]] = {}
    try:
        for name in names:
            results[name] = {}
            for kind, fault in FAULTS.items():
                try:
                    results[name][kind] = dict(inject(SCENARIOS[name], fault, shim, room))
                except AssertionError as error:
                    print(f"{name}, {kind}: {error}", file=sys.stderr)
                    return 1
    finally:
        shutil.rmtree(room, ignore_errors=True)
    Path(report).write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
