"""All or nothing: folders, files and links that are either absent (or as before) or complete.

The order for a folder: a temporary folder beside the target, its files, fsync of each, the manifest with
their hashes, fsync of the folder, rename, fsync of the parent. A kill at any instant leaves the target as it
was, and at worst a temporary folder whose name `clean_stale` knows.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuroada_cli.errors import ModelError, OutputError, ResourceError

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
MAX_MANIFEST_BYTES = 16 << 20
NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
TEMPORARY = re.compile(r"^\..+\.tmp-\d+-[0-9a-f]{8}$")
# Not part of what is verified: a model card is prose, and its owner may edit it.
UNVERIFIED = {MANIFEST, "README.md"}

_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EIO: "the disk is failing; choose another one",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOTDIR: "a part of the path is a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}

# sha256 of files that were hashed while they were written: (device, inode, size, mtime_ns) -> digest
_known_hashes: dict[tuple[int, int, int, int], str] = {}


@contextmanager
def explained(path: Path, nbytes: int | None = None) -> Iterator[None]:
    """Operating-system errors inside become ResourceError naming `path`, what was needed, what to do."""
    try:
        yield
    except OSError as error:
        size = f" ({nbytes:,} bytes wanted)" if nbytes is not None else ""
        remedy = _REMEDIES.get(error.errno or 0)
        raise ResourceError(
            f"cannot be written: {error.strerror or error}{size}", str(path), remedy
        ) from error


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remember_hash(descriptor: int, digest: str) -> None:
    """For writers that hash while writing, so that nothing is read again for the manifest."""
    status = os.fstat(descriptor)
    _known_hashes[status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns] = digest


def hash_file(path: Path) -> str:
    status = path.stat()
    known = _known_hashes.pop((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns), None)
    if known is not None:
        return known
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to the yielded path; on leaving it takes the name `path`, replacing what was there.

    Raises ResourceError; then, and on any exception inside, `path` is as before and nothing is left over.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with explained(path):
            yield temporary
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Fill the yielded folder; on leaving it gets its manifest and takes the name `path`.

    overwrite  an existing folder is exchanged for the new one in one system call, so that at every instant
               one of the two is there, complete
    Raises OutputError when `path` exists, is not empty, and may not be overwritten; ResourceError for the
    disk. Then, and on any exception inside, `path` is as before and the temporary folder is gone.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise OutputError("is a file", str(path), "name a folder")
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise OutputError("exists and is not empty", str(path), "choose another folder, or add --overwrite")
    temporary = _temporary(path)
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            yield temporary
            _seal(temporary)
            _take_place(temporary, path)
            _fsync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(temporary, ignore_errors=True)  # the folder that was exchanged, if there was one


def _seal(folder: Path) -> None:
    """Every file on disk, then the manifest that names them, then the folders that hold them."""
    entries = {}
    for file in _files(folder):
        name = file.relative_to(folder).as_posix()
        _fsync(file)
        if name not in UNVERIFIED:
            entries[name] = {"bytes": file.stat().st_size, "sha256": hash_file(file)}
    manifest = json.dumps({"format": MANIFEST_FORMAT, "files": entries}, indent=1) + "\n"
    (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    _fsync(folder / MANIFEST)
    for inner in [entry for entry in folder.iterdir() if entry.is_dir()]:
        _fsync(inner)
    _fsync(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.rglob("*") if entry.is_file())


def _take_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.rename(temporary, path)
        return
    if not any(path.iterdir()):
        os.rename(temporary, path)  # POSIX renames over an empty folder
        return
    if not _exchange(temporary, path):
        # no such call here: the old folder steps aside for an instant, and back if the second rename fails
        aside = _temporary(path)
        os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except OSError:
            os.rename(aside, path)
            raise
        os.rename(aside, temporary)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically (Linux renameat2); False where the system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(other))


def atomic_link(link: Path, target: str) -> None:
    """Point the relative link at `target`, a name in the same folder, in one step."""
    temporary = _temporary(link)
    with explained(link):
        try:
            os.symlink(target, temporary)
            os.replace(temporary, link)
            _fsync(link.parent)
        finally:
            temporary.unlink(missing_ok=True)


def clean_stale(folder: Path) -> None:
    """Remove what killed writers left in `folder`. Call it while holding the folder's Lock."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.match(entry.name):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def require_space(path: str | os.PathLike[str], nbytes: int) -> None:
    """Raises ResourceError when the file system of `path` lacks room for `nbytes`, or cannot be written."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    with explained(place):
        free = shutil.disk_usage(place).free
    if free < nbytes:
        raise ResourceError(f"needs {nbytes:,} bytes, {free:,} are free", str(path), "make room")
    folder = place if place.is_dir() else place.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ResourceError("may not be written", str(folder), "choose a folder you may write to")


def verify_folder(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a folder after checking every file against it: size, then sha256.

    Files that the manifest does not name are left alone (results of `eval`, notes of the user).
    Raises ModelError for a missing or malformed manifest, a missing, changed or truncated file, a name that
    is not plain, and a link that leaves the folder.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    inside = folder.resolve()
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.resolve().is_relative_to(inside):
            raise ModelError(f"{name} is a link that leaves the folder", str(folder), "copy the file there")
        if not file.is_file():
            raise ModelError(f"{name} is missing", str(folder), "copy the whole folder again")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise ModelError(f"{name} has {size} bytes, its manifest says {entry['bytes']}", str(folder))
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise ModelError(f"{name} is not what was written (its sha256 differs)", str(folder))
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError("too large")
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if type(manifest["format"]) is not int or manifest["format"] > MANIFEST_FORMAT:
            raise ModelError("was written by a newer version", str(file), "update neuroada")
        if manifest["format"] < 1 or set(manifest) != {"format", "files"} or not manifest["files"]:
            raise ValueError("unexpected content")
        for name, entry in manifest["files"].items():
            plain = NAME.match(name) and ".." not in name.split("/")
            if not plain or set(entry) != {"bytes", "sha256"} or type(entry["bytes"]) is not int:
                raise ValueError(f"unexpected entry {name}")
    except FileNotFoundError:
        raise ModelError(f"has no {MANIFEST}, so it was not written completely", str(folder)) from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", str(file)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"is not a manifest ({error})", str(file), "copy the whole folder again") from None
    return dict(manifest)
