"""A file that is one JSON object: its rows lie under a key, at whatever depth, or it is a row itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from neuroada_cli.data.formats import Row
from neuroada_cli.errors import DataError

DEPTH = 4  # keys within keys that are looked through
MOST = 8  # lists that an error names
# what a row asks and what answers it, by the names that others give them; text is learnt as a whole
ASKED = {"prompt", "instruction", "question", "query", "problem", "input"}
ANSWERED = {"completion", "output", "response", "answer", "solution"}
TURNS = {"messages", "conversations"}


def rows_of(row: Row, where: str, key: str | None) -> tuple[list[Row], str | None]:
    """(the rows, the key under which they lay; None where the object is the one row).

    key  names the list ("data", or "data.rows" for a key within a key); None: the only list of objects
    Raises DataError for a key that names none, for several lists, of which one would have to be chosen, for
    lists that hold no objects, and for columns or rows that lie under names of their own.
    """
    if key is not None:
        return _named(row, where, key), key
    if _is_row(row):
        return [row], None
    lists = [name for name, value in _lists(row) if _is_rows(value)]
    if len(lists) > 1:
        raise DataError(
            f"is one object with several lists of rows ({_listed(lists)})",
            where,
            f"name one: data.field: {lists[0][:40]}, or {PurePath(where).name}:{lists[0][:40]} as the source",
        )
    if lists:
        return list(_at(row, lists[0])), lists[0]
    if "text" in row:
        return [row], None
    if len(row) > 1 and all(isinstance(value, dict | list) and len(value) > 1 for value in row.values()):
        if all(isinstance(value, dict) for value in row.values()) and _is_row(next(iter(row.values()))):
            what = "rows, each under a name of its own"
        else:
            what = "whole columns"
        raise DataError(
            f"is one object of {what} ({_listed(list(row)[:4])})", where, "write one object a row"
        )
    for name, value in _lists(row):
        kind = "nothing" if not value else "no objects alone"
        raise DataError(f"is one object, and its list {name[:40]!r} holds {kind}", where, "write rows to it")
    return [row], None


def _named(row: Row, where: str, key: str) -> list[Row]:
    found = _at(row, key)
    if _is_rows(found):
        return list(found)
    lists = [name for name, value in _lists(row) if _is_rows(value)]
    have = f"it has rows under {_listed(lists)}" if lists else "no list of objects is in it"
    fix = f"set data.field: {lists[0][:40]}" if lists else "mend data.field"
    raise DataError(f"holds no rows under {key[:40]!r}: {have}", where, fix)


def _is_row(row: Row) -> bool:
    if any(_is_rows(row.get(name)) or isinstance(row.get(name), str) for name in TURNS):
        return True
    asked = any(isinstance(row.get(name), str) or _is_rows(row.get(name)) for name in ASKED)
    return asked and any(isinstance(row.get(name), str) or _is_rows(row.get(name)) for name in ANSWERED)


def _lists(row: Row, depth: int = DEPTH) -> Iterator[tuple[str, list[Any]]]:
    """(key, list) of every list within, keys within keys joined by full stops."""
    for name, value in row.items():
        if isinstance(value, list):
            yield name, value
        elif isinstance(value, dict) and depth > 1:
            for inner, found in _lists(value, depth - 1):
                yield f"{name}.{inner}", found


def _at(row: Row, key: str) -> Any:
    """What lies under a key, which may hold full stops itself."""
    if key in row:
        return row[key]
    for at, sign in enumerate(key):
        inner = row.get(key[:at]) if sign == "." else None
        if isinstance(inner, dict) and (found := _at(inner, key[at + 1 :])) is not None:
            return found
    return None


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(each, dict) for each in value)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(name[:40] for name in names[:MOST]) + more
