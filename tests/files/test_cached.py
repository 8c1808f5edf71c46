"""A cache of what can be made again loses what was not used for longest, and never what is in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuroada_cli.files.cached import keep_to, used


def filled(folder: Path) -> list[Path]:
    """Files of 10 bytes, the first one used longest ago, and one that is none of the cache's."""
    found = [folder / f"{name}.kept" for name in "dbca"]
    for number, file in enumerate(found):
        file.write_bytes(bytes(10))
        os.utime(file, (number, number))
    (folder / "other").write_bytes(bytes(100))
    return found


@pytest.mark.parametrize(("most", "left"), [(40, 4), (39, 3), (30, 3), (10, 1), (9, 0), (0, 0)])
def test_what_was_used_last_stays(most: int, left: int, tmp_path: Path) -> None:
    files = filled(tmp_path)
    keep_to(tmp_path, ".kept", most)
    assert [file for file in files if file.exists()] == files[len(files) - left :]
    assert (tmp_path / "other").exists()


def test_what_is_of_use_now_counts_as_new(tmp_path: Path) -> None:
    files = filled(tmp_path)
    used(files[0])
    keep_to(tmp_path, ".kept", 10)
    assert [file for file in files if file.exists()] == files[:1]


def test_the_file_that_is_being_read_stays_however_old_it_is(tmp_path: Path) -> None:
    files = filled(tmp_path)
    keep_to(tmp_path, ".kept", 10, kept=Path(str(files[0])))
    assert [file for file in files if file.exists()] == files[:1]
