"""Small files: JSON, text, logs, copies."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from neuroada_cli.errors import ModelError, UserError, unreadable
from neuroada_cli.files import strict_json
from neuroada_cli.files.atomic import atomic_file
from neuroada_cli.files.disk import explained
from neuroada_cli.files.system import fsync

MAX_JSON_BYTES = 64 << 20


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write or replace a UTF-8 file, all or nothing. Raises ResourceError."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write or replace a JSON file, all or nothing. NaN and infinity are refused (ValueError): not JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def append_jsonl(path: str | os.PathLike[str], value: Any) -> None:
    """Add one line to a log, all or nothing unless killed within the call. Raises ResourceError.

    A full disk may take the first bytes of a line and refuse the rest; those are cut off again, so that the
    next line does not continue half of this one.
    """
    line = memoryview((json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode())
    with explained(Path(path)), open(path, "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            written = 0
            while written < len(line):
                written += file.write(line[written:])
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


def settle(path: str | os.PathLike[str]) -> int:
    """Bring a log with appended lines down to the disk; its bytes, 0 without one. Raises ResourceError."""
    path = Path(path)
    with explained(path):
        if not path.exists():
            return 0
        fsync(path)
        fsync(path.parent)
        return path.stat().st_size


def read_jsonl(path: str | os.PathLike[str], nbytes: int | None = None) -> list[Any]:
    """The values of a log's lines; none without a file. What follows the last line break was torn by a kill,
    and is left out.

    nbytes  read only the first so many bytes, which must be whole lines
    Raises ModelError naming file and line.
    """
    path = Path(path)
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as problem:
        raise unreadable(problem, path) from None
    if nbytes is not None:
        if len(data) < nbytes or (nbytes and data[nbytes - 1 : nbytes] != b"\n"):
            raise ModelError(f"does not hold the {nbytes:,} bytes of whole lines that it once did", str(path))
        data = data[:nbytes]
    values = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            values.append(strict_json.parse(line))
        except ValueError as problem:
            raise ModelError(f"not valid JSON: {problem}", f"{path}:{number}") from None
    return values


def cut(path: Path, nbytes: int) -> None:
    """Forget what a log holds behind its first so many bytes. Raises ResourceError."""
    with explained(path):
        os.truncate(path, nbytes)


def open_log(path: Path) -> BinaryIO:
    """A plain log of another process, to be added to. Raises ResourceError."""
    with explained(path):
        return path.open("ab")


def write_binary(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """What `fill` writes into the file it is given, all or nothing. Raises what it raises, ResourceError."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        fill(file)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes (not its mode: new files follow the umask). Raises ResourceError."""
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)


def read_json(path: str | os.PathLike[str], error: type[UserError] = ModelError) -> Any:
    """A JSON file's value. Raises `error`, naming file and line, for anything but valid JSON of sane size."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise error(f"larger than {MAX_JSON_BYTES >> 20} MiB", str(path))
        return strict_json.parse(path.read_bytes())
    except FileNotFoundError:
        raise error("is missing", str(path)) from None
    except OSError as problem:
        raise unreadable(problem, path, error) from None
    except json.JSONDecodeError as problem:
        raise error(f"not valid JSON: {problem.msg}", f"{path}:{problem.lineno}") from None
    except ValueError as problem:
        raise error(f"not valid JSON: {problem}", str(path)) from None
