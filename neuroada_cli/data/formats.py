"""What files of rows are made of: packed bytes, tables of text, and Arrow tables, each back to plain rows."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import hashlib
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroada_cli.errors import LIMITS, DataError, unreadable
from neuroada_cli.files import strict_json

Row = dict[str, Any]
PACKED = (".xz", ".gz", ".zst")
STATE = "state.json"  # of a folder that `datasets` saved: names its Arrow files
LONGEST_FIELD = 1 << 30
EXACT = 2.0**53  # floats from here on leave whole numbers out


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


def parquet(file: Path, where: str) -> list[Row]:
    """Rows of a parquet file, as plain values."""
    try:
        import pyarrow.parquet  # comes with datasets

        return plain_rows(pyarrow.parquet.read_table(file).to_pylist())
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise _arrow_error(error, "a parquet file", where) from None


def arrow(file: Path, where: str) -> list[Row]:
    """Rows of an .arrow file (either of Arrow's two forms), or of what the state.json beside it names."""
    parts = _parts_of(file, where) if file.name == STATE else [file]
    of_json = file.name == STATE and _made_of_json(file.with_name("dataset_info.json"))
    rows: list[Row] = []
    for part in parts:
        try:
            rows += plain_rows(_table(part).to_pylist(), of_json)
        except (OSError, ValueError) as error:
            raise _arrow_error(error, "an Arrow file", str(part)) from None
    return rows


def _table(file: Path) -> Any:
    import pyarrow

    with pyarrow.memory_map(str(file)) as source:
        try:
            return pyarrow.ipc.open_stream(source).read_all()  # what `datasets` writes
        except pyarrow.ArrowInvalid:
            return pyarrow.ipc.open_file(source).read_all()


def _parts_of(state: Path, where: str) -> list[Path]:
    try:
        named = [each["filename"] for each in strict_json.parse(state.read_bytes())["_data_files"]]
    except OSError as error:
        raise unreadable(error, where, DataError) from None
    except (ValueError, KeyError, TypeError):
        raise DataError("names no files of rows", where, "save the data set again") from None
    for name in named:
        if not isinstance(name, str) or Path(name).name != name or not (state.parent / name).is_file():
            raise DataError(f"names a file that is not beside it: {str(name)[:80]!r}", where)
    return [state.parent / name for name in named]


def _made_of_json(about: Path) -> bool:
    """Whether `datasets` says that it made a folder of JSON."""
    try:
        told = strict_json.parse(about.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("builder_name") == "json"


def _arrow_error(error: Exception, kind: str, where: str) -> Exception:
    if isinstance(error, OSError) and error.errno in LIMITS:
        return unreadable(error, where)
    return DataError(f"is not {kind}: {(str(error).splitlines() or ['empty'])[0]}", where)


@dataclass(frozen=True)
class Altered:
    """A value that is no longer what stood in the file; why: what became of it."""

    value: object
    why: str

    def __str__(self) -> str:
        return str(self.value)


def refuse_altered(key: str, value: object) -> None:
    """Raises TypeError for a value of this column that is Altered."""
    if isinstance(value, Altered):
        raise TypeError(f"{key} {value.why}")


def plain_rows(rows: Iterable[Row], of_json: bool = False) -> list[Row]:
    """Rows of a typed table with the values that JSON knows: days and times become ISO text.

    of_json  `datasets` made the table of JSON, where there are neither days nor rounded numbers: what it made
             into such is Altered, which whoever needs the value refuses
    """
    return [{key: _plain(value, of_json) for key, value in row.items()} for row in rows]


def _plain(value: Any, of_json: bool) -> Any:
    if of_json and isinstance(value, datetime.date | datetime.time):
        return Altered(
            value, "was text that `datasets` made a time of; name the JSON file that it was made of"
        )
    if of_json and isinstance(value, float) and value.is_integer() and abs(value) >= EXACT:
        return Altered(
            value, "was a whole number that `datasets` rounded; name the JSON file that it was made of"
        )
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else str(value)
    if isinstance(value, dict):
        return {key: _plain(inner, of_json) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, of_json) for inner in value]
    return value


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
