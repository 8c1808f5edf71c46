"""Reading local rows strictly: JSON, JSON lines, CSV, TSV, plain text, parquet and Arrow; text also packed.

Whatever is wrong is told as file:line with the number of all bad lines; nothing is skipped or mended.
"""

from __future__ import annotations

import json
from pathlib import Path

from neuroada_cli.data import formats
from neuroada_cli.data.formats import PACKED, STATE, Row
from neuroada_cli.errors import DataError
from neuroada_cli.files import strict_json

__all__ = ["ENDINGS", "Row", "read_as", "read_file", "rows_key"]

PLAIN = (".jsonl", ".json", ".csv", ".tsv", ".txt")
ENDINGS = (*PLAIN, *(f"{plain}{packed}" for plain in PLAIN for packed in PACKED), ".parquet", ".arrow")
# lists of objects that are a part of one row, so that an object with one is a row and no list of rows
OF_ONE_ROW = {"messages", "conversations", "prompt", "completion", "tools", "functions", "history"}


def read_file(file: Path) -> tuple[list[Row], list[int] | None]:
    """(rows, their line numbers) of a local file. Raises DataError with file:line, counting the bad lines."""
    return read_as(file, file.name, str(file))


def read_as(file: Path, name: str, where: str) -> tuple[list[Row], list[int] | None]:
    """The same for a file that lies under another name, like a fetched one.

    name   tells its format by its ending; what ends otherwise is JSON
    where  names it in errors
    """
    if name.endswith(".parquet"):
        return formats.parquet(file, where), None
    if name.endswith(".arrow") or name == STATE:
        return formats.arrow(file, where), None
    data = formats.unpacked(file, name, where).removeprefix(b"\xef\xbb\xbf")
    for packed in PACKED:
        name = name.removesuffix(packed)
    if name.endswith((".csv", ".tsv")):
        return formats.table_of_text(data, where, tabs=name.endswith(".tsv"))
    if name.endswith(".txt"):
        return formats.lines_of_text(data, where)
    if data.lstrip()[:1] == b"[":
        return _json_array(data, where), None
    if name.endswith(".json") and data.lstrip()[:1] == b"{" and not _is_object(data.split(b"\n", 1)[0]):
        return _json_object(data, where), None
    rows, lines = _json_lines(data, where)
    if name.endswith(".json") and len(rows) == 1 and rows_key(rows[0], where) is not None:
        return _listed(rows[0], where), None
    return rows, lines


def rows_key(row: Row, where: str) -> str | None:
    """Under which key an object holds the rows; None: it is a row itself.

    Raises DataError for several lists of objects, of which one would have to be chosen.
    """
    found = [
        key
        for key, value in row.items()
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    ]
    if not found or OF_ONE_ROW.intersection(row):
        return None
    if len(found) > 1:
        raise DataError(
            f"is one object with several lists of rows ({', '.join(key[:40] for key in found)})",
            where,
            "give each a file of its own",
        )
    return found[0]


def _listed(row: Row, where: str) -> list[Row]:
    key = rows_key(row, where)
    return [row] if key is None else list(row[key])


def _is_object(line: bytes) -> bool:
    """Whether a line by itself is JSON, so that the file is JSON lines."""
    try:
        return isinstance(strict_json.parse(line), dict)
    except ValueError:
        return False


def _json_object(data: bytes, where: str) -> list[Row]:
    """The rows of one object over several lines: its list of objects, or itself."""
    try:
        row = strict_json.parse(data)
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            raise DataError(
                "several objects, each over more than one line, are no JSON", f"{where}:{error.lineno}",
                "write one object a line, or all in a list",
            ) from None  # fmt: skip
        raise formats.json_error(error, data, where) from None
    return _listed(row, where)


def _json_array(data: bytes, file: str) -> list[Row]:
    try:
        rows = strict_json.parse(data)
    except ValueError as error:
        raise formats.json_error(error, data, file) from None
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"row {number} is a {type(row).__name__}, not an object", file)
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
    if b"\0" in line:
        return "holds a NUL byte"
    try:
        row = strict_json.parse(line)
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg}"
    except ValueError as error:
        return f"not valid JSON: {error}"
    if not isinstance(row, dict):
        return f"is a {type(row).__name__}, not an object"
    rows.append(row)
    return None
