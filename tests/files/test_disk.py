"""Single files, links and logs; what the user is told when the disk says no."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from privilege import lock_folder, unprivileged
from trees import file_size_limit, tree, write_folder

from neuroada_cli import files
from neuroada_cli.errors import DataError, ResourceError


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    files.write_json(file, {"ä": 1})
    assert file.read_text(encoding="utf-8") == '{\n "ä": 1\n}\n'
    with pytest.raises(ValueError):
        files.write_json(file, {"x": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        files.write_text(file, "\ud800")
    assert files.read_json(file) == {"ä": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_link_is_replaced_in_one_step(tmp_path: Path) -> None:
    for target in ("checkpoint-1", "checkpoint-2"):
        files.atomic_link(tmp_path / "last", target)
        assert os.readlink(tmp_path / "last") == target
    (tmp_path / "best").mkdir()
    with pytest.raises(ResourceError, match="best: cannot be written"):
        files.atomic_link(tmp_path / "best", "checkpoint-1")
    assert sorted(os.listdir(tmp_path)) == ["best", "last"]


def test_copying_keeps_the_bytes_and_blames_the_right_file(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    source = tmp_path / "from" / "source"
    source.write_bytes(b"\0\1")
    files.copy_file(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"\0\1"
    (tmp_path / "to").mkdir()
    with pytest.raises(ResourceError, match="from/absent: cannot be opened"):
        files.copy_file(tmp_path / "from" / "absent", tmp_path / "to" / "copy")
    assert os.listdir(tmp_path / "to") == []


def test_a_log_line_that_does_not_fit_is_cut_off_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    files.append_jsonl(log, {"step": 1})
    with file_size_limit(20), pytest.raises(ResourceError, match="ulimit"):
        files.append_jsonl(log, {"step": 2, "text": "x" * 40})
    files.append_jsonl(log, {"step": 3})
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 3]


def test_a_file_too_large_for_the_limit_leaves_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path / "out")
    before = tree(tmp_path)
    big = {"x": torch.zeros(100_000)}
    with file_size_limit(50_000), pytest.raises(ResourceError) as caught:
        files.write_tensors(tmp_path / "x.safetensors", big)
    assert caught.value.exit_code == 6
    assert "400,072 bytes wanted" in caught.value.line()
    assert caught.value.line().endswith("raise the file size limit (ulimit -f)")
    with (
        file_size_limit(50_000),
        pytest.raises(ResourceError) as caught,
        files.atomic_folder(tmp_path / "out", overwrite=True) as folder,
    ):
        files.write_tensors(folder / "x.safetensors", big)
    # by the name that it was to get: the temporary folder is gone
    assert f"{tmp_path}/out/x.safetensors: cannot be written: File too large" in caught.value.line()
    assert ".tmp-" not in caught.value.line()
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room in your quota"),
        (errno.EIO, "the disk is failing"),
        (errno.EROFS, "choose a folder that can be written"),
        (errno.EACCES, "choose a folder you may write to"),
        (errno.EMFILE, "open files"),
    ],
)
def test_every_refusal_of_the_system_has_a_remedy(number: int, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught, files.explained(tmp_path / "x", 12_345):
        raise OSError(number, os.strerror(number))
    line = caught.value.line()
    assert line.startswith(f"{tmp_path}/x: cannot be written: {os.strerror(number)} (12,345 bytes wanted); ")
    assert remedy in line


def test_errors_of_rust_libraries_are_explained_too(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No space left on device; make room"), files.explained(tmp_path):
        raise Exception("No space left on device (os error 28)")
    with pytest.raises(Exception, match=r"^something else$"), files.explained(tmp_path):
        raise Exception("something else")
    with pytest.raises(OSError, match=r"^no number$"), files.explained(tmp_path):
        raise OSError("no number")
    with pytest.raises(DataError), files.explained(tmp_path):
        raise DataError("not ours to explain (os error 28)")


def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    lock_folder(locked)
    code = (
        "import sys\n"
        "from neuroada_cli import errors, files\n"
        "for write, what in ((files.write_text, 'x'), (files.require_space, 1)):\n"
        "    try: write(sys.argv[1], what)\n"
        "    except errors.ResourceError as error: print(error)\n"
    )
    done = unprivileged("-c", code, str(locked / "out"))
    assert done.stderr == ""
    for line in (lines := done.stdout.splitlines()):
        assert "choose a folder you may write to" in line
    assert len(lines) == 2
    assert list(locked.iterdir()) == []


def test_space_is_asked_for_before_work_begins(tmp_path: Path) -> None:
    files.require_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(ResourceError, match=r"needs 1,152,921,504,606,846,976 bytes, [\d,]+ are free"):
        files.require_space(tmp_path / "not" / "yet", 1 << 60)
    assert os.listdir(tmp_path) == []
    if not os.access("/proc/sys", os.W_OK):
        return
    with pytest.raises(ResourceError):
        files.write_text("/proc/nothing/can/be/made/here", "x")
