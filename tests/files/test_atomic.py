"""Folders are there as a whole or not at all, whoever looks and whenever a writer dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from forked import child
from trees import tree, write_folder

from neuroada_cli import files
from neuroada_cli.errors import OutputError, ResourceError
from neuroada_cli.files import atomic


def test_a_folder_appears_complete_with_a_manifest(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "deep" / "out") as folder:
        assert not (tmp_path / "deep" / "out").exists()
        files.write_text(folder / "a.txt", "one")
    assert os.listdir(tmp_path / "deep") == ["out"]
    manifest = files.verify_folder(tmp_path / "deep" / "out")
    assert list(manifest["files"]) == ["a.txt"]
    assert manifest["files"]["a.txt"]["bytes"] == 3


def test_the_order_of_a_folder_is_files_manifest_folders_rename_parent(tmp_path: Path) -> None:
    """Read from strace, so that the calls themselves are seen and not our idea of them."""
    strace = "/usr/bin/strace"
    if not os.path.exists(strace):
        pytest.skip("needs strace")
    script = (
        "import sys; from pathlib import Path\n"
        "from neuroada_cli import files\n"
        "with files.atomic_folder(sys.argv[1]) as folder:\n"
        "    folder = Path(folder); (folder / 'a.txt').write_text('one'); (folder / 'inner').mkdir()\n"
        "    (folder / 'inner' / 'b.txt').write_text('two')\n"
    )
    log = tmp_path / "log"
    command = [strace, "-y", "-e", "trace=fsync,rename,renameat2", "-o", str(log), sys.executable, "-c"]
    done = subprocess.run([*command, script, str(tmp_path / "out")], capture_output=True, text=True)
    if "Operation not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    calls = [line for line in log.read_text().splitlines() if line.startswith(("fsync", "rename"))]
    order = ["a.txt>", "b.txt>", "manifest.json>", "inner>", ".out.tmp-", "rename", f"{tmp_path}>"]
    assert len(calls) == len(order), calls
    for call, part in zip(calls, order, strict=True):
        assert part in call, calls
    assert calls[5].startswith("rename")
    assert calls[6].startswith("fsync")


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "out")
        files.write_json(tmp_path / "x.json", 1)
        files.write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(2)})
        source = tmp_path / "source"
        source.write_text("secret")
        source.chmod(0o600)
        files.copy_file(source, tmp_path / "copy")
    finally:
        os.umask(before)
    for entry in [*tmp_path.rglob("*")]:
        wanted = 0o600 if entry.name == "source" else 0o750 if entry.is_dir() else 0o640
        assert stat.S_IMODE(entry.stat().st_mode) == wanted, entry


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_exception_inside_leaves_everything_as_it_was(tmp_path: Path, overwrite: bool) -> None:
    write_folder(tmp_path / "old")
    before = tree(tmp_path)
    target = tmp_path / ("old" if overwrite else "new")

    def stop_in_the_middle() -> None:
        with files.atomic_folder(target, overwrite=overwrite) as folder:
            files.write_text(folder / "a.txt", "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    assert tree(tmp_path) == before


def test_a_folder_that_exists_is_refused_unless_it_is_empty(tmp_path: Path) -> None:
    write_folder(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="exists and is not empty") as caught:
        write_folder(tmp_path / "out", "two")
    assert caught.value.exit_code == 7
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty")
    files.verify_folder(tmp_path / "empty")


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        write_folder(tmp_path / "out", overwrite=True)
    with pytest.raises(ResourceError, match="a part of the path is a file"):
        write_folder(tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_made_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def write_slowly() -> None:
        with files.atomic_folder(tmp_path / "out") as folder:
            files.write_text(folder / "a.txt", "ours")
            write_folder(tmp_path / "out", "theirs")

    with pytest.raises(OutputError, match="made by another process"):
        write_slowly()
    assert (tmp_path / "out" / "a.txt").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["out"]


def test_overwriting_exchanges_old_and_new(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "one")
    inode = (tmp_path / "out").stat().st_ino
    with files.atomic_folder(tmp_path / "out", overwrite=True) as folder:
        files.write_text(folder / "c.txt", "new")
        assert (tmp_path / "out" / "a.txt").read_text() == "one"
    assert set(tree(tmp_path)) == {"out", "out/c.txt", "out/manifest.json"}
    assert (tmp_path / "out").stat().st_ino != inode


def test_at_every_instant_of_overwriting_one_version_is_complete(tmp_path: Path) -> None:
    """A reader that looks all the time, while versions replace each other."""
    write_folder(tmp_path / "out", "0")
    process = multiprocessing.get_context("fork").Process(target=_keep_overwriting, args=(tmp_path / "out",))
    process.start()
    looks = 0
    while process.is_alive():
        assert (tmp_path / "out" / "manifest.json").exists()
        looks += 1
    process.join()
    assert process.exitcode == 0
    assert looks > 10


def _keep_overwriting(path: Path) -> None:
    for number in range(1, 30):
        write_folder(path, str(number), overwrite=True)


def test_without_exchange_the_old_folder_steps_aside_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems that cannot exchange are rare on a test machine, so the answer of the call is set."""
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    write_folder(tmp_path / "out", "one")
    write_folder(tmp_path / "out", "two", overwrite=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "two"
    assert os.listdir(tmp_path) == ["out"]
    # killed between the two renames: only the one that stepped aside is there
    os.rename(tmp_path / "out", tmp_path / ".out.was-12-0123abcd")
    (tmp_path / ".out.tmp-12-0123abcd").mkdir()
    files.clean_stale(tmp_path)
    assert os.listdir(tmp_path) == ["out"]
    files.verify_folder(tmp_path / "out")


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    for text in ("one", "two"):
        write_folder(tmp_path / "out", text, overwrite=True)
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / "a.txt").read_text() == text
    assert sorted(os.listdir(tmp_path)) == ["disk", "out"]


def test_the_current_folder_can_be_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_folder(Path("."))
    assert os.listdir(tmp_path) == ["here"]
    files.verify_folder(tmp_path / "here")


def test_a_mount_point_is_refused_at_once() -> None:
    with pytest.raises(OutputError, match="is a mount point"), files.atomic_folder("/proc", overwrite=True):
        pytest.fail("the body must not run")


def test_a_name_that_the_reader_would_refuse_is_not_written(tmp_path: Path) -> None:
    for name in ("with space.txt", "new\nline"):
        with (
            pytest.raises(ValueError, match="cannot be in a manifest"),
            files.atomic_folder(tmp_path / "out") as folder,
        ):
            (folder / name).write_text("x")
        assert os.listdir(tmp_path) == []


@contextmanager
def paused_writer(target: Path) -> Iterator[int]:
    """Another process in the middle of writing `target`; yields its pid."""
    ready, tell = os.pipe()

    def work() -> None:
        with files.atomic_folder(target, overwrite=True) as folder:
            files.write_text(folder / "a.txt", "half")
            os.write(tell, b"x")
            signal.pause()

    pid = child(work)
    os.read(ready, 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    with paused_writer(tmp_path / "out"):
        pass
    left = os.listdir(tmp_path)
    assert len(left) == 1
    assert left[0].startswith(".out.tmp-")
    write_folder(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_the_next_writer_leaves_a_living_one_alone(tmp_path: Path) -> None:
    with paused_writer(tmp_path / "out"):
        write_folder(tmp_path / "out")
        assert len(os.listdir(tmp_path)) == 2
    other = tmp_path / ".other.tmp-1-01234567"
    other.mkdir()
    write_folder(tmp_path / "out", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == [other.name, "out"]


def test_clean_stale_knows_its_own(tmp_path: Path) -> None:
    ours = [
        ".out.tmp-12-0123abcd",
        ".x.json.tmp-12-0123abcd",
        ".link.tmp-12-0123abcd",
        ".new\n.tmp-1-01234567",
    ]
    (tmp_path / ours[0]).mkdir()
    (tmp_path / ours[0] / "x").write_text("x")
    (tmp_path / ours[1]).write_text("x")
    (tmp_path / ours[2]).symlink_to("elsewhere")
    (tmp_path / ours[3]).write_text("x")
    theirs = [".out.tmp-12-xyz", "out.tmp-12-0123abcd", ".tmp-12-0123abcd", ".x.tmp-12-0123abcd.bak"]
    for name in theirs:
        (tmp_path / name).write_text("x")
    files.clean_stale(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(theirs)
    files.clean_stale(tmp_path / "absent")


def test_overwriting_spares_a_folder_that_somebody_else_wrote(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear", encoding="utf-8")
    with (
        pytest.raises(OutputError, match="neuroada did not write it"),
        files.atomic_folder(tmp_path / "home", overwrite=True),
    ):
        pass
    assert (tmp_path / "home" / "letter.txt").read_text(encoding="utf-8") == "dear"


def test_what_another_outputs_writer_left_is_its_own_to_remove(tmp_path: Path) -> None:
    """`out` and `out.b` lie side by side, and the temporaries of both begin alike."""
    left = tmp_path / ".out.b.tmp-99999-0123abcd"
    left.mkdir()
    write_folder(tmp_path / "out")
    assert left.is_dir()
    write_folder(tmp_path / "out.b")
    assert not left.exists()
