"""Nothing is ever half written: whatever call the machine dies at, and whatever call it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from counting import record

HERE = Path(__file__).parent
QUICK = [
    "adapter, new", "adapter, overwritten", "selection, overwritten", "weights, overwritten", "log line",
    "link", "checkpoint", "evaluation",
]  # fmt: skip
SLOW = ["adapter, overwritten without exchange", "selection, new", "merge", "training, overwritten"]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc, to build the shim that injects faults")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    options = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([compiler, *options, str(HERE / "shim.c"), "-ldl"], check=True)
    return library


def run(names: list[str], shim: Path, room: Path) -> dict[str, Any]:
    """In a process of its own, since only a new process can be given the shim."""
    report = room / "report.json"
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(room)
    environment = os.environ | {"LD_PRELOAD": str(shim), "FAULTS_ROOM": memory, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "inject.py"), str(shim), str(report), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(report.read_text()))


def check(found: dict[str, Any]) -> None:
    for name, kinds in found.items():
        assert set(kinds) == {"kill", "torn write", "ENOSPC", "EIO"}
        for outcomes in kinds.values():
            assert sum(outcomes.values()) > 0, f"nothing was injected into {name}"
        record(f"every call: {name}", kinds)


def test_whatever_call_fails_nothing_is_half_written(shim: Path, tmp_path: Path) -> None:
    found = run(QUICK, shim, tmp_path)
    check(found)
    # both sides of the rename were seen, or the calls would not have been counted at all
    for name in ("adapter, overwritten", "checkpoint"):
        assert set(found[name]["kill"]) == {"after as before", "after complete"}
        assert found[name]["kill"]["after as before"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_same_for_longer_paths(name: str, shim: Path, tmp_path: Path) -> None:
    check(run([name], shim, tmp_path))


def test_the_harness_notices_a_writer_that_is_not_atomic(shim: Path, tmp_path: Path) -> None:
    """A test that cannot fail proves nothing: writing in place must be caught."""
    script = tmp_path / "in_place.py"
    script.write_text(
        "import ctypes, sys, tempfile\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "from inject import FAULTS, Scenario, inject\n"
        "def write(folder, text):\n"
        "    (folder / 'x').write_text(text)\n"
        "def state(folder):\n"
        "    text = (folder / 'x').read_text()\n"
        "    assert text in ('old', 'new'), f'half written: {text!r}'\n"
        "    return text\n"
        "in_place = Scenario(lambda f: write(f, 'old'), lambda f: write(f, 'new'), state)\n"
        "shim = ctypes.CDLL(sys.argv[1])\n"
        "inject(in_place, FAULTS['kill'], shim, Path(tempfile.mkdtemp(dir=sys.argv[2])))\n"
    )
    command = [sys.executable, str(script), str(shim), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"LD_PRELOAD": str(shim)}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "half written: ''" in done.stderr
