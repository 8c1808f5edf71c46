"""Commands that may not write everywhere, also where the tests run as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DROPPED = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"]


def unprivileged(*words: str) -> subprocess.CompletedProcess[str]:
    """`python words` in a process that file permissions bind. Skips where root cannot give that up."""
    before: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv (util-linux): root may write anywhere")
        before = DROPPED
    return subprocess.run([*before, sys.executable, *words], capture_output=True, text=True, check=False)


def lock_folder(folder: Path) -> None:
    """Make a folder in which nothing can be made; skips where permissions are not kept."""
    folder.mkdir(mode=0o500)
    tried = unprivileged("-c", f"open({str(folder / 'x')!r}, 'w')")
    if tried.returncode == 0:
        pytest.skip("this file system lets everybody write")
