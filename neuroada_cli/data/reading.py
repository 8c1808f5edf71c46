"""Reading local rows strictly: JSON, JSON lines, CSV, TSV, plain text, parquet and Arrow; text also packed.

Whatever is wrong is told as file:line with the number of all bad lines; nothing is skipped or mended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from neuroada_cli.data import formats
from neuroada_cli.data.formats import PACKED, STATE, Row
from neuroada_cli.data.one_object import rows_of
from neuroada_cli.errors import DataError
from neuroada_cli.files import strict_json

__all__ = ["ENDINGS", "FileRows", "Row", "read_as", "read_file"]

PLAIN = (".jsonl", ".json", ".csv", ".tsv", ".txt")
ENDINGS = (*PLAIN, *(f"{plain}{packed}" for plain in PLAIN for packed in PACKED), ".parquet", ".arrow")
KINDS = {"list": "a list", "str": "text", "int": "a number", "float": "a number", "NoneType": "null"}


class FileRows(NamedTuple):
    """Rows of a file.

    lines  their line numbers, where rows are lines
    key    under which they lay, where the file is one object
    """

    rows: list[Row]
    lines: list[int] | None = None
    key: str | None = None


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
        return FileRows(formats.parquet(file, where))
    if name.endswith(".arrow") or name == STATE:
        return FileRows(formats.arrow(file, where))
    data = formats.unpacked(file, name, where).removeprefix(b"\xef\xbb\xbf")
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
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        problem = _parse_line(line, rows)
        if problem is None:
            lines.append(number)
        else:
            bad.append((number, problem))
    if bad:
        number, problem = bad[0]
        more = f" ({len(bad)} of {len(bad) + len(rows)} lines are bad)" if len(bad) > 1 else ""
        raise DataError(f"{problem}{more}", f"{file}:{number}", "mend or remove it")
    return rows, lines


def _parse_line(line: bytes, rows: list[Row]) -> str | None:
    """Adds the line's row; or says what is wrong with it."""
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
    rows.append(row)
    return None


def _kind(value: object) -> str:
    return KINDS.get(type(value).__name__, "true or false")
