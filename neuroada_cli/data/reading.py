"""Reading local rows strictly: JSON, JSON lines (both also as .xz) and parquet.

Whatever is wrong is told as file:line with the number of all bad lines; nothing is skipped or mended.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

from neuroada_cli.errors import LIMITS, DataError, unreadable
from neuroada_cli.files import strict_json

Row = dict[str, Any]
ENDINGS = (".jsonl", ".json", ".jsonl.xz", ".json.xz", ".parquet")


def read_file(file: Path) -> tuple[list[Row], list[int] | None]:
    """(rows, their line numbers) of a local file. Raises DataError with file:line, counting the bad lines."""
    return read_as(file, file.name, str(file))


def read_as(file: Path, name: str, where: str) -> tuple[list[Row], list[int] | None]:
    """The same for a file that lies under another name, like a fetched one.

    name   tells its format by its ending
    where  names it in errors
    """
    if name.endswith(".parquet"):
        return _parquet(file, where), None
    try:
        data = lzma.decompress(file.read_bytes()) if name.endswith(".xz") else file.read_bytes()
    except lzma.LZMAError:
        raise DataError("is not a whole .xz file", where, "copy it again") from None
    except OSError as error:
        raise unreadable(error, where, DataError) from None
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    if data.lstrip()[:1] == b"[":
        return _json_array(data, where), None
    return _json_lines(data, where)


def _json_array(data: bytes, file: str) -> list[Row]:
    try:
        rows = strict_json.parse(data)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError("not UTF-8 text", f"{file}:{line}", "save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", f"{file}:{error.lineno}") from None
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", file) from None
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


def _parquet(file: Path, where: str) -> list[Row]:
    try:
        import pyarrow.parquet  # comes with datasets

        return list(pyarrow.parquet.read_table(file).to_pylist())
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        if isinstance(error, OSError) and error.errno in LIMITS:
            raise unreadable(error, where) from None
        raise DataError(f"is not a parquet file: {str(error).splitlines()[0]}", where) from None
