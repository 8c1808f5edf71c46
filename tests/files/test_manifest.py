"""A folder that is not what its manifest says is refused, and the file named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from trees import write_folder

from neuroada_cli import files
from neuroada_cli.errors import ModelError


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    write_folder(tmp_path / "out")
    return tmp_path / "out"


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        files.verify_folder(folder)
    assert caught.value.exit_code == 4
    return caught.value.line()


def rewrite_manifest(folder: Path, change: object) -> None:
    file = folder / "manifest.json"
    if callable(change):
        manifest = json.loads(file.read_text())
        change(manifest)
        change = json.dumps(manifest)
    file.write_bytes(change if isinstance(change, bytes) else str(change).encode())


def test_what_the_manifest_does_not_name_is_left_alone(sealed: Path) -> None:
    (sealed / "results.json").write_text("{}")
    (sealed / "README.md").write_text("the owner's own words")
    files.verify_folder(sealed)
    with pytest.raises(ModelError, match=r"does not list results\.json"):
        files.verify_folder(sealed, needed=("a.txt", "results.json"))


def test_one_file_is_checked_alone(sealed: Path) -> None:
    assert files.is_ours(sealed)
    names = sorted(json.loads((sealed / "manifest.json").read_text())["files"])
    (sealed / names[-1]).unlink()  # not the file that is asked for
    assert files.own_file(sealed, "a.txt") == sealed / "a.txt"
    (sealed / "notes.txt").write_text("came later")
    assert files.own_file(sealed, "notes.txt") is None
    (sealed / "a.txt").write_text("two")
    with pytest.raises(ModelError, match="is not what was written"):
        files.own_file(sealed, "a.txt")


@pytest.mark.parametrize(
    "manifest", [None, "{", '{"name": "app", "icons": []}', '{"format": 99, "files": {}}']
)
def test_folders_of_others(sealed: Path, manifest: str | None) -> None:
    (sealed / "manifest.json").unlink()
    if manifest is not None:
        (sealed / "manifest.json").write_text(manifest)
    assert not files.is_ours(sealed)
    with pytest.raises(ModelError):
        files.own_file(sealed, "a.txt")


def test_changed_files_are_named(sealed: Path) -> None:
    (sealed / "a.txt").write_text("two")
    assert "a.txt is not what was written" in refusal(sealed)
    (sealed / "a.txt").write_text("on")
    assert "a.txt has 2 bytes, its manifest says 3" in refusal(sealed)
    (sealed / "a.txt").unlink()
    assert "a.txt is missing" in refusal(sealed)
    (sealed / "a.txt").mkdir()
    assert "a.txt is missing" in refusal(sealed)
    (sealed / "manifest.json").unlink()
    assert "has no manifest.json, so it was not written completely" in refusal(sealed)


def test_links_that_leave_the_folder_are_refused(sealed: Path, tmp_path: Path) -> None:
    (sealed / "a.txt").rename(tmp_path / "a.txt")
    (sealed / "a.txt").symlink_to(tmp_path / "a.txt")
    assert "a.txt is a link that leaves the folder" in refusal(sealed)
    (sealed / "a.txt").unlink()
    (sealed / "a.txt").symlink_to("a.txt")
    assert "a.txt is missing" in refusal(sealed)
    (sealed / "a.txt").unlink()
    (tmp_path / "a.txt").rename(sealed / "kept.txt")
    (sealed / "a.txt").symlink_to("kept.txt")
    files.verify_folder(sealed)


@pytest.mark.parametrize(
    "change",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1, "files": {}}',
        b'{"format": true, "files": {"a.txt": {"bytes": 3, "sha256": ""}}}',
        b'{"format": 1, "format": 1, "files": {"a.txt": {"bytes": 3, "sha256": ""}}}',
        b'{"format": 0, "files": {"a.txt": {"bytes": 3, "sha256": ""}}}',
        lambda m: m.update(extra=1),
        lambda m: m["files"].update({"../out/a.txt": m["files"]["a.txt"]}),
        lambda m: m["files"].update({"/etc/passwd": m["files"]["a.txt"]}),
        lambda m: m["files"].update({"a.txt\n": m["files"]["a.txt"]}),
        lambda m: m["files"].update({"a/b/c": m["files"]["a.txt"]}),
        lambda m: m["files"].update({".": m["files"]["a.txt"]}),
        lambda m: m["files"].update({"manifest.json": m["files"]["a.txt"]}),
        lambda m: m["files"]["a.txt"].update(bytes=3.0),
        lambda m: m["files"]["a.txt"].update(bytes=True),
        lambda m: m["files"]["a.txt"].update(sha256=None),
        lambda m: m["files"]["a.txt"].update(sha256=m["files"]["a.txt"]["sha256"].upper()),
        lambda m: m["files"]["a.txt"].update(more=1),
        lambda m: m["files"].update({"a.txt": [1, 2]}),
        lambda m: m.update(files=["a.txt"]),
    ],
)  # fmt: skip
def test_a_malformed_manifest_is_refused(sealed: Path, change: object) -> None:
    rewrite_manifest(sealed, change)
    line = refusal(sealed)
    assert "is not a manifest" in line
    assert len(line) < 400 + len(str(sealed))


def test_a_newer_manifest_says_so(sealed: Path) -> None:
    rewrite_manifest(sealed, lambda m: m.update(format=2, whatever=1))
    assert "written by a newer version; update neuroada" in refusal(sealed)


def test_a_file_that_was_changed_after_it_was_written_is_sealed_as_it_is(tmp_path: Path) -> None:
    """Tensors are hashed while they are written, and not read again unless something happened to them."""
    with files.atomic_folder(tmp_path / "out") as folder:
        files.write_tensors(folder / "x.safetensors", {"x": torch.zeros(4)})
        data = bytearray((folder / "x.safetensors").read_bytes())
        data[-1] ^= 1
        os.utime(folder / "x.safetensors", ns=(1, 1))
        (folder / "x.safetensors").write_bytes(data)
    files.verify_folder(tmp_path / "out", needed=("x.safetensors",))


def test_links_of_the_hubs_cache_are_read_and_no_others(sealed: Path, tmp_path: Path) -> None:
    """snapshots/<revision>/<file> -> ../../blobs/<hash>, also of files in folders."""
    cache = tmp_path / "cache"
    cache.mkdir()
    repository = cache / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "1234", repository / "blobs"
    snapshot.parent.mkdir(parents=True)
    blobs.mkdir()
    sealed.rename(snapshot)
    for number, file in enumerate(file for file in sorted(snapshot.rglob("*")) if file.is_file()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        file.unlink()
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    assert files.verify_folder(snapshot)["files"]
    (repository / "secret").write_text((snapshot / "a.txt").read_text())
    (snapshot / "a.txt").unlink()
    (snapshot / "a.txt").symlink_to("../../secret")
    assert "a.txt is a link that leaves the folder" in refusal(snapshot)
    (blobs / "out").symlink_to("../secret")
    (snapshot / "a.txt").unlink()
    (snapshot / "a.txt").symlink_to("../../blobs/out")
    assert "a.txt is a link that leaves the folder" in refusal(snapshot)
    blobs.rename(cache / "elsewhere")
    blobs.symlink_to(cache / "elsewhere")
    (snapshot / "a.txt").unlink()
    (snapshot / "a.txt").symlink_to("../../blobs/0")
    assert "is a link that leaves the folder" in refusal(snapshot)
