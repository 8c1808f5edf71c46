"""Reading local rows strictly: JSON, JSON lines, CSV, TSV, plain text, parquet and Arrow; text also packed.

Whatever is wrong is told as file:line with the number of all bad lines; nothing is skipped or mended.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from neuroada_cli.data import formats, typed
from neuroada_cli.data.formats import PACKED, STATE, Row, row_bytes
from neuroada_cli.data.lazy import JsonLines
from neuroada_cli.data.one_object import rows_of
from neuroada_cli.errors import DataError, unreadable
from neuroada_cli.files import strict_json
from neuroada_cli.show.progress import counting

__all__ = ["ENDINGS", "FileRows", "Row", "read_as", "read_file", "streamed"]

BOM = b"\xef\xbb\xbf"

PLAIN = (".jsonl", ".json", ".csv", ".tsv", ".txt")
ENDINGS = (*PLAIN, *(f"{plain}{packed}" for plain in PLAIN for packed in PACKED), ".parquet", ".arrow")
KINDS = {"list": "a list", "str": "text", "int": "a number", "float": "a number", "NoneType": "null"}


class FileRows(NamedTuple):
    """Rows of a file.

    lines  their line numbers, where rows are lines
    key    under which they lay, where the file is one object
    said   what of the file is not in them, or is otherwise there
    """

    rows: Sequence[Row]
    lines: Sequence[int] | None = None
    key: str | None = None
    said: tuple[str, ...] = ()


def read_file(file: Path, key: str | None = None) -> FileRows:
    """The rows of a local file. Raises DataError with file:line, counting the bad lines."""
    return read_as(file, file.name, str(file), key)


def read_as(file: Path, name: str, where: str, key: str | None = None) -> FileRows:
    """The same for a file that lies under another name, like a fetched one.

    name   tells its format by its ending; what ends otherwise is JSON
    where  names it in errors
    key    under which the rows of one JSON object lie; None: its only list of objects, or it is a row itself
    """
    found = _read_as(file, name, where, key)
    if key is not None and found.key is None:
        raise DataError(f"is not one JSON object with rows under {key[:40]!r}", where, "mend data.field")
    return found


def _read_as(file: Path, name: str, where: str, key: str | None) -> FileRows:
    if name.endswith(".parquet"):
        rows, said = typed.parquet(file, where)
        return FileRows(rows, said=said)
    if name.endswith(".arrow") or name == STATE:
        rows, said = typed.arrow(file, where)
        return FileRows(rows, said=said)
    data = formats.unpacked(file, name, where).removeprefix(BOM)
    for packed in PACKED:
        name = name.removesuffix(packed)
    if name.endswith((".csv", ".tsv")):
        return FileRows(*formats.table_of_text(data, where, tabs=name.endswith(".tsv")))
    if name.endswith(".txt"):
        return FileRows(*formats.lines_of_text(data, where))
    if data.lstrip()[:1] == b"[":
        return FileRows(_json_array(data, where))
    first = data.lstrip().split(b"\n", 1)[0]
    if first[:1] == b"{" and not _is_object(first):
        row = _json_object(data, where, name.endswith(".json"))
        if row is not None:
            inner, under = rows_of(row, where, key)
            return FileRows(inner, key=under)
    if first and first[:1] != b"{" and not name.endswith((".json", ".jsonl")):
        raise DataError(
            "is no JSON, and its name does not end like another file of rows",
            where,
            f"end it in {', '.join(PLAIN)}, .parquet or .arrow, as what it is",
        )
    rows, lines = _json_lines(data, where)
    if len(rows) == 1 and (name.endswith(".json") or key is not None):
        inner, under = rows_of(rows[0], where, key)
        return FileRows(inner, key=under) if under is not None else FileRows(inner, lines)
    return FileRows(rows, lines)


def _is_object(line: bytes) -> bool:
    """Whether a line by itself is JSON, so that the file is JSON lines."""
    try:
        return isinstance(strict_json.parse(line), dict)
    except ValueError:
        return False


def _json_object(data: bytes, where: str, must_be: bool) -> Row | None:
    """One object over several lines; None where the file is none, and need not be one."""
    try:
        row: Row = strict_json.parse(data)
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and error.lineno > 1:
            if error.doc[error.pos :].startswith("{"):
                raise DataError(
                    "several objects, each over more than one line, are no JSON", f"{where}:{error.lineno}",
                    "write one object a line, or all in a list",
                ) from None  # fmt: skip
            must_be = True
        if must_be:
            raise formats.json_error(error, data, where) from None
        return None
    return row


def _json_array(data: bytes, file: str) -> list[Row]:
    try:
        rows = strict_json.parse(data)
    except ValueError as error:
        raise formats.json_error(error, data, file) from None
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"row {number} is {_kind(row)}, not an object", file)
    return list(rows)


def _json_lines(data: bytes, file: str) -> tuple[list[Row], list[int]]:
    rows: list[Row] = []
    lines: list[int] = []
    bad = _Bad(file)
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        row = _parse_line(line)
        if isinstance(row, str):
            bad.note(number, row)
        else:
            rows.append(row)
            lines.append(number)
    bad.refuse(len(rows))
    return rows, lines


class _Bad:
    """Lines that are no rows: the first of them, and how many there are."""

    def __init__(self, file: str) -> None:
        self._file, self._first, self._count = file, (0, ""), 0

    def note(self, number: int, problem: str) -> None:
        self._first = self._first if self._count else (number, problem)
        self._count += 1

    def refuse(self, good: int) -> None:
        """Raises DataError if there is any; `good`: how many lines are rows."""
        if self._count:
            number, problem = self._first
            more = f" ({self._count} of {self._count + good} lines are bad)" if self._count > 1 else ""
            raise DataError(f"{problem}{more}", f"{self._file}:{number}", "mend or remove it")


def streamed(file: Path, where: str, console: Console | None = None) -> FileRows | None:
    """The rows of a file of JSON lines, read when they are asked for; None for a file of another form.

    console  where is shown how far looking at it once is, which finds every bad line
    Raises DataError as `read_file` does.
    """
    digest, places, lines, bad = hashlib.sha256(), array("q"), array("q"), _Bad(where)
    begin = 0
    try:
        with (
            open(file, "rb") as opened,
            counting("reading rows (MB)", _mb(file.stat().st_size), console) as watch,
        ):
            for number, line in enumerate(opened, start=1):
                text = line.removeprefix(BOM) if number == 1 else line
                if not places and text.strip() and not _is_object(text):
                    return None  # a list, an object over several lines, or none
                if text.strip():
                    row = _parse_line(text.removesuffix(b"\n"))
                    if isinstance(row, str):
                        bad.note(number, row)
                    else:
                        digest.update(row_bytes(row))
                        places.append(begin + len(line) - len(text))
                        lines.append(number)
                begin += len(line)
                if _mb(begin) > _mb(begin - len(line)):
                    watch(_mb(begin) - _mb(begin - len(line)))
    except OSError as error:
        raise unreadable(error, where, DataError) from None
    bad.refuse(len(places))
    sha256 = digest.hexdigest()
    return FileRows(JsonLines(file, where, places, sha256, strict_json.parse), lines)


def _mb(size: int) -> int:
    return size // 1_000_000


def _parse_line(line: bytes) -> Row | str:
    """A line's row; or what is wrong with it."""
    try:
        if "\0" in line.decode():
            return "holds a NUL byte"
        row = strict_json.parse(line)
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg}"
    except ValueError as error:
        return f"not valid JSON: {error}"
    if not isinstance(row, dict):
        return f"is {_kind(row)}, not an object"
    return row


def _kind(value: object) -> str:
    return KINDS.get(type(value).__name__, "true or false")
