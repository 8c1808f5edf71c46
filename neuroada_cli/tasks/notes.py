"""What is said once of many rows: columns that nobody read, values that became text, and the like."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from neuroada_cli.data.reading import Row
from neuroada_cli.data.typed import require_plain


class Notes:
    """Collected while examples are made of rows; `lines` tells it.

    day     whether a chat template asks for the day
    forms   formats that rows were read in
    fields  tells which fields of messages the chat template left out of all rows
    """

    def __init__(self) -> None:
        self.day = False
        self.forms: set[str] = set()
        self._there: Counter[str] = Counter()
        self._used: set[str] = set()
        self._said: Counter[str] = Counter()
        self._read_as: dict[str, str] = {}
        self.fields: Callable[[], list[str]] = list
        self._deaf = False

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Inside, nothing is noted: rows that are made again were counted before."""
        before, self._deaf = self._deaf, True
        try:
            yield
        finally:
            self._deaf = before

    def tracked(self, row: Row) -> Row:
        """The row, which remembers what of it was read."""
        if self._deaf:
            return row
        self._there.update(key for key, value in row.items() if value is not None)
        return _Tracked(row, self._used, {})

    def used(self, column: str) -> None:
        self._used.add(column)

    def say(self, what: str) -> None:
        """Count one more row of which something is to be said."""
        if not self._deaf:
            self._said[what] += 1

    def read_as(self, columns: Mapping[str, str]) -> None:
        """Our names -> theirs, where they were taken for ours."""
        self._read_as.update(columns)

    def lines(self) -> list[str]:
        found = [f"{what}: {count:,} row{'s' * (count != 1)}" for what, count in self._said.items()]
        if self._read_as:
            pairs = ", ".join(f"{theirs} as {ours}" for ours, theirs in self._read_as.items())
            found.insert(0, f"columns are read by other names: {pairs}")
        left_out = self.fields()
        if left_out:
            found.append(f"the chat template writes nothing of: {', '.join(each[:40] for each in left_out)}")
        unused = sorted(self._there.keys() - self._used)
        if unused:
            found.append(f"columns that are not used: {', '.join(column[:40] for column in unused)}")
        return found


class _Tracked(dict[str, Any]):
    """A row whose columns count as used once their value is asked for, by whatever name."""

    def __init__(self, row: Row, used: set[str], names: Mapping[str, str]) -> None:
        super().__init__(row)
        self._used, self._names = used, names

    def __getitem__(self, key: str) -> Any:
        self._used.add(self._names.get(key, key))
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._used.add(self._names.get(key, key))
        return super().get(key, default)

    def under(self, names: Mapping[str, str]) -> _Tracked:
        return _Tracked(_renamed(self, names), self._used, names)


def renamed(row: Row, names: Mapping[str, str]) -> Row:
    """The row with its columns under our names (ours -> theirs). Raises KeyError for one that it lacks."""
    if not names:
        return row
    return row.under(names) if isinstance(row, _Tracked) else _renamed(row, names)


def _renamed(row: Row, names: Mapping[str, str]) -> Row:
    plain = dict(row)  # which counts as no use
    others = {key: value for key, value in plain.items() if key not in names.values()}
    return others | {ours: plain[theirs] for ours, theirs in names.items()}


def as_text(row: Row, key: str, notes: Notes | None = None) -> str:
    """A column as text: numbers, true, false, lists and objects as JSON writes them, which is noted.

    Raises KeyError for a column that is not there, TypeError for null and for what JSON cannot say.
    """
    value = row[key]
    if isinstance(value, str):
        return value
    if value is None:
        raise TypeError(f"{key} is null, not text")
    require_plain(key, value)
    if notes is not None:
        plain = isinstance(value, bool | int | float)
        notes.say(
            f"{key}: {'numbers, true and false become text' if plain else 'lists and objects become JSON'}"
        )
    return json.dumps(value, ensure_ascii=False)


def optional_text(row: Row, key: str, notes: Notes | None = None) -> str:
    """The same of a column that may be missing or null: then it is empty."""
    return as_text(row, key, notes) if row.get(key) is not None else ""
