"""The shim that injects faults, built once; and the counts of what was injected."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc, to build the shim that injects faults")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    command = [
        compiler,
        "-O1",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        library,
        HERE / "shim.c",
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="session")
def counts() -> Iterator[dict[str, Any]]:
    """What was tried, how often, with what result; kept only where `make reliability` asks for it."""
    found: dict[str, Any] = {}
    yield found
    if target := os.environ.get("NEUROADA_RELIABILITY"):
        file = Path(target)
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(dict(sorted((before | found).items())), indent=1) + "\n")


def scale(default: int, thorough: int) -> int:
    """How many cases: for every run, or for `make reliability`."""
    return thorough if os.environ.get("NEUROADA_RELIABILITY") else default
