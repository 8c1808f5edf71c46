"""What files of text are made of: packed bytes, lines, and tables of text, each back to plain rows."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import lzma
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from neuroada_cli.errors import DataError, unreadable

Row = dict[str, Any]
PACKED = (".xz", ".gz", ".zst")
STATE = "state.json"  # of a folder that `datasets` saved: names its Arrow files
LONGEST_FIELD = 1 << 30
MARKS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # what may part columns, the most common first
# A value in quotes begins and ends where a value may, whatever parts them; a quote elsewhere is text.
QUOTED_OR_MARK = re.compile(r'(?:\A|(?<=[,;\t\r\n]))"[^"]*(?:""[^"]*)*"(?=[,;\t\r\n]|\Z)|[,;\t\n]')
LOOKED_AT = 1000  # rows by which columns are told apart


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
    """A row with `text` for every line that is not blank, as `datasets` reads such files; their numbers.

    Lines end at a line feed, as for whoever counts them: form feeds and U+2028 are text.
    """
    lines = [(n, line) for n, line in enumerate(decoded(data, where).split("\n"), 1) if line.strip()]
    return [{"text": line.removesuffix("\r")} for _, line in lines], [number for number, _ in lines]


def table_of_text(data: bytes, where: str, tabs: bool) -> tuple[list[Row], list[int]]:
    """(rows of a CSV or TSV file, the lines at which they begin): every value is the text that stands there.

    tabs: the columns are parted by tabs, as the file's name says; else by what `_parted_by` finds. Raises
    DataError for rows of another length than the first line, counting them, and for a file whose columns may
    be parted in two ways.
    """
    text = decoded(data, where)
    parted = "\t" if tabs else _parted_by(text, where)
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
        raise DataError(f"not valid CSV (parted by {MARKS[parted]}): {error}", f"{where}:{begins}") from None
    if bad:
        more = f" ({len(bad)} of {len(bad) + len(rows)} rows)" if len(bad) > 1 else ""
        raise DataError(
            f"not as many values as the first line has names ({len(names)}, parted by {MARKS[parted]}){more}",
            f"{where}:{bad[0]}", "quote values that hold the separator or a line break",
        )  # fmt: skip
    return rows, lines


def _parted_by(text: str, where: str) -> str:
    """The mark that parts columns: the only one in the first line outside quotes; of several the one that
    stands as often in each of the first rows, of none a comma.

    Raises DataError where several marks do.
    """
    counts = _marks_of(text)
    marks = [mark for mark in MARKS if counts and counts[0][mark]]
    if len(marks) < 2:
        return marks[0] if marks else ","
    fit = [mark for mark in marks if all(each[mark] == counts[0][mark] for each in counts)]
    if len(fit) > 1 and len(counts) > 1:
        ways = " or ".join(f"{counts[0][mark] + 1} parted by {MARKS[mark]}" for mark in fit)
        raise DataError(
            f"its columns may be {ways}: every row has as many of both", f"{where}:1",
            "put the names that hold one of them in quotes, and such values, too",
        )  # fmt: skip
    return fit[0] if fit else marks[0]


def _marks_of(text: str) -> list[Counter[str]]:
    """How often each mark stands outside quotes in the first rows that are not blank."""
    rows: list[Counter[str]] = []
    count, begin = Counter[str](), 0
    for found in QUOTED_OR_MARK.finditer(text):
        sign = found[0]
        if sign in MARKS:
            count[sign] += 1
        elif sign == "\n":
            if text[begin : found.start()].strip():
                rows.append(count)
            count, begin = Counter(), found.end()
            if len(rows) == LOOKED_AT:
                return rows
    return [*rows, count] if text[begin:].strip() else rows


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
