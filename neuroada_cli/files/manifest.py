"""manifest.json: size and sha256 of every file of a folder, written last and checked first."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuroada_cli.errors import ModelError, unreadable
from neuroada_cli.files import strict_json
from neuroada_cli.files.system import fsync

MANIFEST = "manifest.json"
FORMAT = 1
MAX_BYTES = 16 << 20
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SHA256 = re.compile(r"[0-9a-f]{64}")
# Not part of what is verified: a model card is prose, and its owner may edit it.
UNVERIFIED = {MANIFEST, "README.md"}

# sha256 of files that were hashed while they were written: (device, inode, size, mtime_ns) -> digest
_known_hashes: dict[tuple[int, int, int, int], str] = {}


def remember_hash(descriptor: int, digest: str) -> None:
    """For writers that hash while writing, so that nothing is read again for the manifest."""
    status = os.fstat(descriptor)
    _known_hashes[status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns] = digest


def _hash(path: Path) -> str:
    status = path.stat()
    known = _known_hashes.pop((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns), None)
    return known or _read_hash(path)


def _read_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Every file on disk, then the manifest that names them, then the folders that hold them.

    Raises OSError; ValueError for a file whose name the reader would refuse.
    """
    entries = {}
    for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        name = file.relative_to(folder).as_posix()
        if not _is_plain(name):
            raise ValueError(f"{name!r} cannot be in a manifest")
        fsync(file)
        if name not in UNVERIFIED:
            entries[name] = {"bytes": file.stat().st_size, "sha256": _hash(file)}
    (folder / MANIFEST).write_text(manifest_text(entries), encoding="utf-8")
    fsync(folder / MANIFEST)
    for inner in [entry for entry in folder.iterdir() if entry.is_dir()]:
        fsync(inner)
    fsync(folder)


def manifest_text(entries: Mapping[str, Any]) -> str:
    """What the file holds. entries  name -> {"bytes", "sha256"}"""
    return json.dumps({"format": FORMAT, "files": entries}, indent=1) + "\n"


def verify_folder(path: str | os.PathLike[str], needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """The manifest of a folder after checking every file against it: size, then sha256.

    needed  names that the manifest must list, since the caller is about to read them
    Files that the manifest does not name are left alone (results of `eval`, notes of the user).
    Raises ModelError for a missing or malformed manifest, a missing, changed or truncated file, a name that
    is not plain, and a link that leaves the folder.
    """
    folder = Path(path)
    manifest = _read(folder)
    for name in needed:
        if name not in manifest["files"]:
            raise ModelError(
                f"its {MANIFEST} does not list {name}", str(folder), "copy the whole folder again"
            )
    for name, entry in manifest["files"].items():
        _check(folder, name, entry)
    return manifest


def take_stock(path: str | os.PathLike[str], names: tuple[str, ...]) -> dict[str, Any]:
    """What a manifest would say of these files of a folder that has none.

    Raises ModelError for a file that is missing or a link that leaves the folder.
    """
    folder, found = Path(path), {}
    for name in names:
        file = folder / name
        _stay_inside(folder, name)
        try:
            found[name] = {"bytes": file.stat().st_size, "sha256": _read_hash(file)}
        except OSError as error:
            raise unreadable(error, folder, what=f"{name} cannot be read") from None
    return {"format": FORMAT, "files": found}


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a folder has a manifest as `seal` writes it; what other programs call so is none."""
    try:
        _read(Path(path))
    except ModelError:
        return False
    return True


def own_file(path: str | os.PathLike[str], name: str) -> Path | None:
    """A file of a folder after checking it, and only it, against the manifest; None if that does not name it.

    Raises ModelError for a folder without our manifest, and for a file that is not what was written.
    """
    folder = Path(path)
    entry = _read(folder)["files"].get(name)
    if entry is None:
        return None
    _check(folder, name, entry)
    return folder / name


def _check(folder: Path, name: str, entry: dict[str, Any]) -> None:
    _stay_inside(folder, name)
    try:
        _check_content(folder, name, entry)
    except OSError as error:
        raise unreadable(error, folder, what=f"{name} cannot be read") from None


def _stay_inside(folder: Path, name: str) -> None:
    inside = os.path.realpath(folder)
    file = os.path.realpath(folder / name)
    if os.path.commonpath([inside, file]) != inside and os.path.dirname(file) != _blobs_of(inside):
        raise ModelError(f"{name} is a link that leaves the folder", str(folder), "copy the file there")


def _blobs_of(folder: str) -> str | None:
    """Where the files of a snapshot in the hub's cache lie: `snapshots/<revision>` links into `../../blobs`.
    None for any other folder, and where `blobs` itself leads elsewhere.
    """
    repository, kind = os.path.split(os.path.dirname(folder))
    blobs = os.path.join(repository, "blobs")
    return blobs if kind == "snapshots" and os.path.realpath(blobs) == blobs else None


def _check_content(folder: Path, name: str, entry: dict[str, Any]) -> None:
    file = folder / name
    if not os.path.isfile(file):
        raise ModelError(f"{name} is missing", str(folder), "copy the whole folder again")
    size = file.stat().st_size
    if size != entry["bytes"]:
        raise ModelError(f"{name} has {size} bytes, its manifest says {entry['bytes']}", str(folder))
    if _read_hash(file) != entry["sha256"]:
        raise ModelError(f"{name} is not what was written (its sha256 differs)", str(folder))


def _read(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError("too large")
        manifest = strict_json.parse(file.read_bytes())
        if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
            raise ValueError("it has no format number")
        if manifest["format"] > FORMAT:
            raise ModelError("was written by a newer version", str(file), "update neuroada")
        if manifest["format"] < 1 or set(manifest) != {"format", "files"} or not manifest["files"]:
            raise ValueError("unexpected content")
        for name, entry in manifest["files"].items():
            if not _is_plain(name) or name in UNVERIFIED or not _is_entry(entry):
                raise ValueError(f"unexpected entry {name[:80]}")
    except FileNotFoundError:
        raise ModelError(f"has no {MANIFEST}, so it was not written completely", str(folder)) from None
    except OSError as error:
        raise unreadable(error, file) from None
    except (ValueError, AttributeError) as error:
        raise ModelError(f"is not a manifest ({error})", str(file), "copy the whole folder again") from None
    return dict(manifest)


def _is_plain(name: str) -> bool:
    return NAME.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
        and isinstance(entry["sha256"], str)
        and SHA256.fullmatch(entry["sha256"]) is not None
    )
