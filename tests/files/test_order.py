"""The order of system calls: data before names, names before what may then go. Read from strace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STRACE = "/usr/bin/strace"
CALLS = "fsync,rename,renameat,renameat2,symlink,symlinkat"
# what is done in a folder of its own, each of that name
SCRIPT = """
import sys, torch
from pathlib import Path
from neuroada_cli import files
for name in ("text", "json", "tensors", "copy", "link"):
    (Path(sys.argv[1]) / name).mkdir()
text, json, tensors, copy, link = (Path(sys.argv[1]) / n for n in ("text", "json", "tensors", "copy", "link"))
files.write_text(text / "a", "x")
files.write_json(json / "a", [1])
files.write_tensors(tensors / "a", {"x": torch.ones(3)})
(copy / "source").write_text("x")
files.copy_file(copy / "source", copy / "a")
files.atomic_link(link / "a", "b")
"""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """(the place of it all, the calls in their order)."""
    if not os.path.exists(STRACE):
        pytest.skip("needs strace")
    place, log = tmp_path_factory.mktemp("place"), tmp_path_factory.mktemp("log") / "log"
    command = [STRACE, "-f", "-y", "-e", f"trace={CALLS}", "-o", str(log), sys.executable, "-c", SCRIPT]
    done = subprocess.run([*command, str(place)], capture_output=True, text=True)
    if "Operation not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    return place, [line.partition(" ")[2].strip() for line in log.read_text().splitlines()]


@pytest.mark.parametrize("name", ["text", "json", "tensors", "copy"])
def test_a_file_is_on_the_disk_before_it_gets_its_name(name: str, traced: tuple[Path, list[str]]) -> None:
    place, calls = traced
    own = [call for call in calls if f"{place}/{name}" in call]
    renamed = next(n for n, call in enumerate(own) if call.startswith("rename"))
    assert f"{place}/{name}/.a.tmp-" in own[renamed]
    assert f'{place}/{name}/a"' in own[renamed]
    synced = [call for call in own[:renamed] if call.startswith("fsync")]
    assert synced, own
    assert f"{place}/{name}/.a.tmp-" in synced[-1]
    assert own[renamed + 1].startswith("fsync")
    assert f"{place}/{name}>" in own[renamed + 1]


def test_a_link_is_made_under_another_name_and_its_folder_brought_to_the_disk(
    traced: tuple[Path, list[str]],
) -> None:
    place, calls = traced
    own = [call for call in calls if f"{place}/link" in call]
    assert [call.partition("(")[0] for call in own] == ["symlink", "rename", "fsync"]
    assert f"{place}/link/.a.tmp-" in own[0]
    assert f"{place}/link>" in own[2]
