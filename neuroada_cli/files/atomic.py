"""All or nothing: folders, files and links that are either absent (or as before) or complete.

The order for a folder: a temporary folder beside the target, its files, fsync of each, the manifest with
their hashes, fsync of the folder, rename, fsync of the parent. A kill at any instant leaves the target as it
was, and at worst a temporary folder whose name `clean_stale` knows.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from neuroada_cli import stopping
from neuroada_cli.errors import OutputError, ResourceError
from neuroada_cli.files import system
from neuroada_cli.files.disk import explained
from neuroada_cli.files.folders import holds_anything
from neuroada_cli.files.manifest import MANIFEST, seal
from neuroada_cli.files.system import fsync

# .NAME.tmp-PID-RANDOM is being written; .NAME.was-PID-RANDOM is what stood at NAME and steps aside
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|was)-\d+-[0-9a-f]{8}", re.DOTALL)


def _temporary(path: Path, kind: str = "tmp") -> Path:
    return path.parent / f".{path.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}"


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to the yielded path; on leaving it takes the name `path`, replacing what was there.

    Raises ResourceError. On any exception nothing is left over, and `path` is as before or (when only the
    last fsync, that of the folder, failed) the new file, never a part of it.
    """
    path = Path(path)
    temporary = _temporary(path)

    def tidy() -> None:
        temporary.unlink(missing_ok=True)

    try:
        with stopping.tidied(tidy), explained(path):
            yield temporary
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
    except BaseException:
        tidy()
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Fill the yielded folder; on leaving it gets its manifest and takes the name `path`.

    overwrite  an existing folder is exchanged for the new one in one system call, so that at every instant
               one of the two is there, complete
    Raises OutputError when `path` exists, is not empty, and may not be overwritten (also when it came into
    being meanwhile); ResourceError for the disk. Then, and on any exception inside, `path` is as before and
    the temporary folder is gone. What earlier writers of `path` left when they were killed is removed.
    """
    target = _checked_target(Path(path), overwrite)
    with explained(Path(path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean_abandoned(target)
    with _claimed(target) as temporary, _by_its_final_name(temporary, Path(path)), explained(Path(path)):
        yield temporary
        seal(temporary)
        with stopping.held():
            _take_place(temporary, target, overwrite)


@contextmanager
def _by_its_final_name(temporary: Path, path: Path) -> Iterator[None]:
    """Errors of writing name what was to become, not the temporary folder, which is gone by then."""
    try:
        yield
    except ResourceError as error:
        if error.where is None or str(temporary) not in error.where:
            raise
        where = error.where.replace(str(temporary), str(path))
        raise ResourceError(error.what, where, error.fix) from error


def _checked_target(path: Path, overwrite: bool) -> Path:
    """The absolute path of the folder itself: a link to it stays a link. Raises OutputError."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise OutputError("is a file", str(path), "name a folder")
    if os.path.ismount(path):
        raise OutputError("is a mount point, which nothing can replace", str(path), "name a folder inside it")
    if holds_anything(path):
        if not overwrite:
            raise OutputError(
                "exists and is not empty", str(path), "choose another folder, or add --overwrite"
            )
        if not (path / MANIFEST).is_file():  # a mistyped path must not cost somebody's home folder
            raise OutputError(
                f"holds no {MANIFEST}, so neuroada did not write it and will not replace it",
                str(path),
                "choose another folder, or empty this one yourself",
            )
    return Path(os.path.realpath(path))


@contextmanager
def _claimed(target: Path) -> Iterator[Path]:
    """A new temporary folder beside `target`, which is gone afterwards with whatever lies there then: the
    new folder when something failed, the old one when it was exchanged.

    While it is filled its lock is held, which says that its writer lives. Raises ResourceError.
    """
    place: list[Path] = []
    claim: list[int | None] = []

    def tidy() -> None:
        while claim:  # first, since removing takes a descriptor, and there may be no other
            descriptor = claim.pop()
            if descriptor is not None:
                os.close(descriptor)
        for folder in place:
            remove_tree(folder)

    try:
        with stopping.tidied(tidy):
            with explained(target):
                while not claim:
                    place[:] = [_temporary(target)]
                    place[0].mkdir()
                    claim += _lock_of(place[0])
            yield place[0]
    finally:
        tidy()


def _lock_of(folder: Path) -> list[int | None]:
    """A descriptor that holds a new folder's lock, None where folders have none; no entry where another
    process has taken the folder for abandoned in the instant before.
    """
    with suppress(FileNotFoundError, BlockingIOError):
        descriptor = system.open_folder(folder)
        if descriptor is None:
            return [None]
        with suppress(BlockingIOError):
            system.lock(descriptor)
            if folder.is_dir():
                return [descriptor]
        os.close(descriptor)
    return []


def remove_tree(folder: Path) -> None:
    """A folder with all that is in it, as far as the system allows; with one descriptor at a time, so that it
    works where there are hardly any left.
    """
    with suppress(OSError):
        with os.scandir(folder) as found:
            entries = list(found)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_tree(Path(entry.path))
            else:
                with suppress(OSError):
                    os.unlink(entry.path)
        os.rmdir(folder)


def _clean_abandoned(target: Path) -> None:
    """Remove temporaries of `target` whose writers are dead: whose lock can be had."""
    for entry in target.parent.glob(f".{_quoted(target.name)}.*"):
        match = TEMPORARY.fullmatch(entry.name)
        if not match or match["name"] != target.name:
            continue
        with suppress(OSError):  # not a folder, not ours, or alive
            descriptor = system.open_folder(entry, system.NO_LINK)
            if descriptor is None:
                continue
            try:
                if system.lock(descriptor):
                    _remove_or_put_back(entry, match)
            finally:
                os.close(descriptor)


def _quoted(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _take_place(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the finished folder its name. A former one lies at `temporary` afterwards, or is gone.

    Raises OSError, OutputError; then `target` is as before.
    """
    if not (overwrite and holds_anything(target)):
        system.make_way(target)
        try:
            os.rename(temporary, target)  # POSIX renames over an empty folder, and only over an empty one
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise OutputError("was made by another process meanwhile", str(target)) from None
            raise
        _settle(lambda: os.rename(target, temporary), target.parent)
    elif _exchange(temporary, target):
        _settle(lambda: _exchange(temporary, target), target.parent)
    else:
        _step_aside(temporary, target)


def _settle(undo: Callable[[], object], parent: Path) -> None:
    """The names of a folder down to the disk; what was there before may only be removed after that."""
    try:
        fsync(parent)
    except OSError:
        undo()
        raise


def _step_aside(temporary: Path, target: Path) -> None:
    """Where two folders cannot be exchanged: for an instant `target` is missing, and if we die in it,
    `clean_stale` or the next writer of `target` puts the old one back.
    """
    aside = _temporary(target, "was")
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(aside, target)
        raise

    def undo() -> None:
        os.rename(target, temporary)
        os.rename(aside, target)

    _settle(undo, target.parent)
    remove_tree(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically (Linux renameat2); False where the system or file system cannot."""
    renameat2 = system.symbol("renameat2")
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def atomic_link(link: Path, target: str) -> None:
    """Point the relative link at `target`, a name in the same folder, in one step."""
    temporary = _temporary(link)
    with stopping.tidied(lambda: temporary.unlink(missing_ok=True)), explained(link):
        try:
            os.symlink(target, temporary, target_is_directory=True)
            os.replace(temporary, link)
            fsync(link.parent)
        finally:
            temporary.unlink(missing_ok=True)


def remove_folder(path: Path, unless_read: bool = False) -> bool:
    """Take a folder away. Its name goes before its content, so that nobody ever finds half of it.

    unless_read  leave it, and return False, while somebody reads it (`Reading`)
    What of the content cannot be removed stays behind under a name that `clean_stale` knows. Raises OSError.
    """
    temporary = _temporary(path)
    descriptor = system.open_folder(path) if unless_read else None
    try:
        if descriptor is not None:
            system.lock(descriptor)
        with stopping.tidied(lambda: remove_tree(temporary)):
            os.rename(path, temporary)
            shutil.rmtree(temporary)
    except BlockingIOError:
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return True


def clean_stale(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers left in `folder`, and put back what they had moved aside.

    name  only what was to become this entry
    Call it while holding the Lock of the folder or the entry.
    """
    for entry in list(folder.iterdir()) if folder.is_dir() else ():
        match = TEMPORARY.fullmatch(entry.name)
        if match and name in (None, match["name"]):
            _remove_or_put_back(entry, match)


def _remove_or_put_back(entry: Path, match: re.Match[str]) -> None:
    with suppress(OSError):
        if match["kind"] == "was" and not os.path.lexists(entry.with_name(match["name"])):
            os.rename(entry, entry.with_name(match["name"]))
        elif entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            entry.unlink(missing_ok=True)
