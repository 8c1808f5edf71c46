"""What files of text are made of: packed bytes, lines, and tables of text, each back to plain rows."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import lzma
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from neuroada_cli.errors import DataError, unreadable

Row = dict[str, Any]
PACKED = (".xz", ".gz", ".zst")
STATE = "state.json"  # of a folder that `datasets` saved: names its Arrow files
LONGEST_FIELD = 1 << 30


def unpacked(file: Path, name: str, where: str) -> bytes:
    """A file's bytes, unpacked where its name says so. Raises DataError for a part of a packed file."""
    try:
        data = file.read_bytes()
        if name.endswith(".xz"):
            return lzma.decompress(data)
        if name.endswith(".gz"):
            return gzip.decompress(data)
        if name.endswith(".zst"):
            return _zstd(data)
    except (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile):
        raise DataError(f"is not a whole {Path(name).suffix} file", where, "copy it again") from None
    except OSError as error:
        raise unreadable(error, where, DataError) from None
    return data


def _zstd(data: bytes) -> bytes:
    import pyarrow  # comes with datasets, and with the codec

    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd") as stream:
            return bytes(stream.read())
    except OSError:
        raise EOFError from None


def decoded(data: bytes, where: str) -> str:
    """Text of a file. Raises DataError with the line that is no UTF-8, or holds a NUL byte."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError("not UTF-8 text", f"{where}:{line}", "save it as UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError("holds a NUL byte, so it is no text", f"{where}:{line}", "save it as text")
    return text


def lines_of_text(data: bytes, where: str) -> tuple[list[Row], list[int]]:
    """A row with `text` for every line that is not blank, as `datasets` reads such files; their numbers."""
    lines = [(n, line) for n, line in enumerate(decoded(data, where).splitlines(), 1) if line.strip()]
    return [{"text": line} for _, line in lines], [number for number, _ in lines]


def table_of_text(data: bytes, where: str, tabs: bool) -> tuple[list[Row], list[int]]:
    """(rows of a CSV or TSV file, the lines at which they begin): every value is the text that stands there.

    Semicolons or tabs part the columns where the first line holds them and no comma. Raises DataError for
    rows of another length than the first line, counting them.
    """
    text = decoded(data, where)
    head = text.partition("\n")[0]
    parted = "\t" if tabs else next((mark for mark in (",", ";", "\t") if mark in head), ",")
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=parted, strict=True)
    rows: list[Row] = []
    lines: list[int] = []
    bad: list[int] = []
    names: list[str] = []
    begins = 1
    try:
        for values in reader:
            if values and not names:
                names = _names(values, where)
            elif values and len(values) == len(names):
                rows.append(dict(zip(names, values, strict=True)))
                lines.append(begins)
            elif values:
                bad.append(begins)
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"not valid CSV: {error}", f"{where}:{begins}") from None
    if bad:
        more = f" ({len(bad)} of {len(bad) + len(rows)} rows)" if len(bad) > 1 else ""
        raise DataError(
            f"not as many values as the first line has names ({len(names)}){more}", f"{where}:{bad[0]}",
            "quote values that hold the separator or a line break",
        )  # fmt: skip
    return rows, lines


def _names(values: list[str], where: str) -> list[str]:
    twice = [name for name, count in Counter(values).items() if count > 1]
    if twice:
        raise DataError(f"its first line names {twice[0][:40]!r} twice", f"{where}:1", "rename one")
    return values


def row_bytes(row: Row) -> bytes:
    """What a row is hashed by: the same for the same content, however it was written."""
    return json.dumps(row, sort_keys=True, ensure_ascii=False, default=_unsaid).encode() + b"\n"


def _unsaid(value: object) -> str:
    """What JSON cannot say: of bytes their hash."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def json_error(error: ValueError, data: bytes, where: str) -> DataError:
    """What is said of a file that is no JSON, with the line."""
    if isinstance(error, UnicodeDecodeError):
        line = data[: error.start].count(b"\n") + 1
        return DataError("not UTF-8 text", f"{where}:{line}", "save it as UTF-8")
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"not valid JSON: {error.msg}", f"{where}:{error.lineno}")
    return DataError(f"not valid JSON: {error}", where)
