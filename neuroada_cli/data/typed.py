"""Rows of typed tables (parquet, Arrow, sets of the hub) as the JSON that they were meant to be.

A typed table knows one set of keys for all objects of a column: an object that lacks one of them holds null
there, which its author never wrote. Such nulls are left out, and what is said of them stands in `said`. Keys
of a map are its own, and JSON that a table keeps as text (`arrow.json`) is JSON: their nulls stay.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from neuroada_cli.data.formats import STATE, Row
from neuroada_cli.errors import LIMITS, DataError, unreadable
from neuroada_cli.files import strict_json

EXACT = 2.0**53  # floats from here on leave whole numbers out
PICTURES = {"image", "images", "img"}  # whose bytes are pictures, by the names under which tasks ask for them
PICTURE = {"bytes", "path"}  # a picture as `datasets` keeps it
# where a key that is null has always counted as one that is missing: whoever reads messages asks for no null
TURNS = {"messages", "conversations", "prompt", "completion"}
NAMED = 4  # keys that a line names
ROWS_AT_ONCE = 1024
Make = Callable[[Any], Any]


@dataclass(frozen=True)
class Altered:
    """A value that is no longer what stood in the file; why: what became of it."""

    value: object
    why: str

    def __str__(self) -> str:
        return str(self.value)


def require_plain(key: str, value: object) -> None:
    """Raises TypeError for a value of this column that is Altered, or that JSON cannot say, however deep it
    lies."""
    if odd := _odd(value):
        raise TypeError(f"{key} {'holds what ' if isinstance(value, dict | list) else ''}{odd}")


def _odd(value: object) -> str:
    """What is wrong with a value; nothing where JSON has it."""
    if value is None or isinstance(value, str | bool | int):
        return ""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return next(filter(None, map(_odd, inner)), "")
    if isinstance(value, Altered):
        return value.why
    if isinstance(value, bytes):
        return "is binary, and no UTF-8 text"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"is {value}, which is no number that JSON has"
    if isinstance(value, datetime.timedelta):
        return "is a span of time, which has no one text; write it as text or as a number"
    return f"is {type(value).__name__}, which has no one text; write it as text"


class TypedRows:
    """Turns tables of one source into rows, and counts what they are told without.

    where    names the source in errors
    of_json  `datasets` made the tables of JSON, where there are neither days nor rounded numbers: what it
             made into such is Altered, which whoever needs the value refuses
    """

    def __init__(self, where: str, of_json: bool = False) -> None:
        self._where, self._of_json = where, of_json
        self._row = 0
        self._left_out = _Counted()
        self._decoded = _Counted()

    def rows(self, table: Any) -> list[Row]:
        """The rows of an Arrow table, whose numbers go on where those of the table before end.

        Raises DataError for a map with a key twice, or with one that is no text, and for broken JSON.
        """
        makers = {field.name: self._maker(field.type, (field.name,)) for field in table.schema}
        found = table.to_pylist()
        for row in found:
            for key, make in makers.items():
                if make is not None and row[key] is not None:
                    row[key] = make(row[key])
            self._row += 1
        return list(found)

    @property
    def said(self) -> tuple[str, ...]:
        """What of the tables is not in the rows, or is otherwise there: a line each, with its count."""
        found = []
        if self._left_out.rows:
            found.append(
                "a typed table gives every object the keys of all others; those that are null are left out "
                f"({self._left_out})"
            )
        if self._decoded.rows:
            found.append(f"binary columns are read as UTF-8 text ({self._decoded})")
        return tuple(found)

    def _place(self) -> str:
        return f"{self._where}, row {self._row}"

    def _maker(self, kind: Any, path: tuple[str, ...]) -> Make | None:
        """What makes JSON of a value of this type that is not null; None: it is JSON already."""
        import pyarrow.types as types

        if isinstance(kind, _of("BaseExtensionType")):
            return self._json if kind.extension_name == "arrow.json" else self._maker(kind.storage_type, path)
        if types.is_dictionary(kind):
            return self._maker(kind.value_type, path)
        if types.is_struct(kind):
            return self._object(kind, path)
        if types.is_map(kind):
            return self._map(kind, path)
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            return self._list(kind, path)
        if types.is_list_view(kind) or types.is_large_list_view(kind):
            return self._list(kind, path)
        if types.is_floating(kind):
            return self._number if self._of_json else None
        if types.is_integer(kind) or types.is_boolean(kind) or types.is_string(kind):
            return None
        if bytes_like(kind):
            return None if PICTURES & {*path} else lambda value: self._text(value, path)
        return self._other

    def _object(self, kind: Any, path: tuple[str, ...]) -> Make | None:
        fields = [kind.field(number) for number in range(kind.num_fields)]
        if {field.name for field in fields} == PICTURE:
            return None
        makers = {field.name: self._maker(field.type, (*path, field.name)) for field in fields}
        told = len(path) > 1 or path[0] not in TURNS

        def make(value: dict[str, Any]) -> dict[str, Any]:
            found = {}
            for key, maker in makers.items():
                inner = value[key]
                if inner is not None:
                    found[key] = inner if maker is None else maker(inner)
                elif told:
                    self._left_out.note((*path, key), self._row)
            return found

        return make

    def _map(self, kind: Any, path: tuple[str, ...]) -> Make:
        keys, items = self._maker(kind.key_type, path), self._maker(kind.item_type, path)

        def make(value: list[tuple[Any, Any]]) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for key, inner in value:
                name = key if keys is None else keys(key)
                if isinstance(name, bytes):
                    raise DataError(f"a key of the map {path[-1]!r} is binary, and no text", self._place())
                name = name if isinstance(name, str) else str(name)
                if name in found:
                    raise DataError(f"the map {path[-1]!r} has the key {name[:40]!r} twice", self._place())
                found[name] = inner if inner is None or items is None else items(inner)
            return found

        return make

    def _list(self, kind: Any, path: tuple[str, ...]) -> Make | None:
        maker = self._maker(kind.value_type, path)
        if maker is None:
            return None
        return lambda value: [each if each is None else maker(each) for each in value]

    def _json(self, value: str) -> Any:
        try:
            return strict_json.parse(value)
        except ValueError as error:
            raise DataError(f"holds JSON as text that is none: {error}", self._place()) from None

    def _number(self, value: float) -> object:
        if value.is_integer() and abs(value) >= EXACT:
            return _altered(value, "a whole number that `datasets` rounded")
        return value

    def _text(self, value: bytes, path: tuple[str, ...]) -> str | bytes:
        """What is no text stays what it is: it matters only where somebody asks for it."""
        try:
            found = value.decode()
        except UnicodeDecodeError:
            return value
        if "\0" in found:
            return value
        self._decoded.note(path, self._row)
        return found

    def _other(self, value: Any) -> Any:
        if isinstance(value, datetime.date | datetime.time):
            if self._of_json:
                return _altered(value, "text that `datasets` made a time of")
            return value.isoformat()
        if isinstance(value, decimal.Decimal):
            return int(value) if value == value.to_integral_value() else str(value)
        return str(value) if isinstance(value, UUID) else value


def _altered(value: object, was: str) -> Altered:
    return Altered(value, f"was {was}; name the JSON file that it was made of")


class _Counted:
    """Keys of which something is said, and the rows that have one of them."""

    def __init__(self) -> None:
        self.rows, self._last, self._keys = 0, -1, dict[tuple[str, ...], None]()

    def note(self, path: tuple[str, ...], row: int) -> None:
        self._keys.setdefault(path)
        self.rows += row != self._last
        self._last = row

    def __str__(self) -> str:
        names = [".".join(path)[:80] for path in self._keys]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"{', '.join(names[:NAMED])}{more}: {self.rows:,} row{'s' * (self.rows != 1)}"


def _of(name: str) -> Any:
    import pyarrow  # comes with datasets; loaded where a typed table is read

    return getattr(pyarrow, name)


def bytes_like(kind: Any) -> bool:
    """Whether values of an Arrow type are bytes."""
    import pyarrow.types as types

    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def parquet(file: Path, where: str) -> tuple[list[Row], tuple[str, ...]]:
    """(rows of a parquet file, what is to be said of them)."""
    try:
        import pyarrow.parquet

        made = TypedRows(where)
        return made.rows(pyarrow.parquet.read_table(file)), made.said
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise _arrow_error(error, "a parquet file", where) from None


def json_lines_of(file: str | Path) -> Iterator[str]:
    """A parquet file as lines of JSON that give the same rows, a part at a time.

    Raises DataError for what JSON cannot say, with its row: bytes of pictures, and spans of time.
    """
    made, number = TypedRows(str(file)), 0
    for table in _parts_of_parquet(file):
        for row in made.rows(table):
            try:
                for key, value in row.items():
                    require_plain(key, value)
            except TypeError as error:
                raise DataError(f"cannot be written as JSON: {error}", f"{file}, row {number}") from None
            yield json.dumps(row, ensure_ascii=False)
            number += 1


def _parts_of_parquet(file: str | Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(ROWS_AT_ONCE):
            yield pyarrow.Table.from_batches([batch])
    except (OSError, ValueError) as error:
        raise _arrow_error(error, "a parquet file", str(file)) from None


def arrow(file: Path, where: str) -> tuple[list[Row], tuple[str, ...]]:
    """The same of an .arrow file (either of Arrow's two forms), or of what the state.json beside it names."""
    parts = _parts_of(file, where) if file.name == STATE else [file]
    of_json = file.name == STATE and _made_of_json(file.with_name("dataset_info.json"))
    made, rows = TypedRows(where, of_json), list[Row]()
    for part in parts:
        try:
            rows += made.rows(_table(part))
        except (OSError, ValueError) as error:
            raise _arrow_error(error, "an Arrow file", str(part)) from None
    return rows, made.said


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
