"""Which questions stand in two sets: test questions that a model was trained on measure memory.

Rows are compared by what they ask, not by prompts: a question is the same one in another template, behind
another system text, and as one turn of a conversation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from neuroada_cli.data.images import content_hash, pictures_in, root_of
from neuroada_cli.data.reading import Row
from neuroada_cli.data.sources import Rows, load_rows
from neuroada_cli.errors import DataError
from neuroada_cli.tasks.conversation import ROLES, is_chat, raw_messages
from neuroada_cli.tasks.task import Task

# what rows of any family ask, in the order in which it is put together; the rest is answers
ASKED = (
    "instruction", "input", "question", "query", "problem", "context", "message", "prompt", "text",
    "sentence", "sentence1", "sentence2", "question1", "question2", "premise", "hypothesis", "pair",
    "text_pair",
)  # fmt: skip

PICTURES = ("image", "images", "img")  # fields that hold them, where a row has some


def normalise(text: str) -> str:
    """Letters and digits alone, in lower case: copies of a set differ in spaces before punctuation, too."""
    return "".join(filter(str.isalnum, text.lower()))


def questions_of(row: Row, columns: Mapping[str, str] | None = None) -> list[str]:
    """What a row asks, normalised: all of it first ("" for a row that asks nothing), then what it asks up to
    each earlier turn, and each of its turns by itself.

    columns  our names -> the row's own
    System texts ask nothing: they are the same in all rows of a set.
    """
    turns = _turns(row)
    if turns is None:
        names = (columns or {}).get
        asked = "".join(value for key in ASKED if isinstance(value := row.get(names(key, key)), str))
        turns = [*_history(row), (True, asked)]
    ends = [number for number, (asks, _) in enumerate(turns) if asks]
    if not ends:
        return [""]
    found = [normalise("".join(text for _, text in turns[: ends[-1] + 1]))]
    if len(ends) > 1:
        found += [normalise("".join(text for _, text in turns[: end + 1])) for end in ends[:-1]]
        found += [normalise(turns[end][1]) for end in ends]
    return found


def _turns(row: Row) -> list[tuple[bool, str]] | None:
    """(whether the user speaks, what is said) of a conversation to its last answer; None for another row."""
    if not is_chat(row):
        return None
    try:
        raw = raw_messages(row)
    except (KeyError, TypeError, ValueError):
        return None
    turns = []
    for message in raw:
        if not isinstance(message, dict):
            return None
        role = ROLES.get(str(message.get("role", message.get("from"))))
        if role not in ("system", "developer"):
            said = message.get("content", message.get("value"))
            turns.append((role == "user", "".join(_texts(said))))
    return turns


def _texts(content: Any) -> Iterable[str]:
    """The text of a message, also of one in parts, between which pictures may stand."""
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            yield text


def _history(row: Row) -> list[tuple[bool, str]]:
    pairs = row.get("history")
    turns: list[tuple[bool, str]] = []
    for pair in pairs if isinstance(pairs, list) else []:
        if isinstance(pair, list) and len(pair) == 2:
            turns += [(True, str(pair[0])), (False, str(pair[1]))]
    return turns


def asked_by(row: Row, root: Path | None, columns: Mapping[str, str] | None = None) -> list[str]:
    """`questions_of` a row, and about which picture: the same words about another picture ask something else.

    root  the folder that paths of pictures start from
    """
    seen = "".join(_seen(value, root) for key in PICTURES for value in _held(row, key))
    return [question + seen for question in questions_of(row, columns)]


def _held(row: Row, key: str) -> tuple[bytes | str, ...]:
    """The pictures in a field, which may hold something else in rows of text."""
    try:
        return pictures_in(row, key)
    except (KeyError, TypeError):
        return ()


def _seen(value: bytes | str, root: Path | None) -> str:
    """A picture by its content; by its name where that cannot be read here."""
    if isinstance(value, str) and root is not None and (root / value).is_file():
        value = (root / value).read_bytes()
    return content_hash(value) if isinstance(value, bytes) else value


def questions(rows: Rows, columns: Mapping[str, str] | None = None) -> frozenset[str]:
    """The normalised questions that rows teach, each turn of a conversation also by itself.

    columns  our names -> the rows' own
    Raises DataError where none of the rows asks anything in a field that is known.
    """
    root = root_of(rows.source)
    found = frozenset(question for row in rows.rows for question in asked_by(row, root, columns)) - {""}
    if not found and len(rows):
        raise DataError(
            f"what its rows ask is in no field that is known ({', '.join(list(rows.rows[0])[:8])})",
            rows.source,
            "say which it is in data.columns",
        )
    return found


def questions_of_tests(tasks: Iterable[Task], data_dir: str | None) -> frozenset[str]:
    """The questions of the test sets of tasks, each as a whole; a task without a set of its own adds none.

    Raises DataError for a set that cannot be loaded.
    """
    found: set[str] = set()
    for source in (task.sets["test"] for task in tasks if "test" in task.sets):
        rows = load_rows(source, "test", data_dir)
        found.update(asked_by(row, root_of(rows.source))[0] for row in rows.rows)
    return frozenset(found - {""})


def leaked(rows: Rows, seen: Collection[str], columns: Mapping[str, str] | None = None) -> list[int]:
    """The places of the test rows whose question, as a whole, is among the questions `seen` in training."""
    root = root_of(rows.source)
    return [place for place, row in enumerate(rows.rows) if asked_by(row, root, columns)[0] in seen]


def teaching(
    rows: Rows, tested: Collection[str], columns: Mapping[str, str] | None = None, upto: int | None = None
) -> list[int]:
    """The places of the training rows (of the first `upto`) that ask, in one turn or as a whole, what a test
    does. Raises DataError where none of them asks anything in a field that is known.
    """
    root, places, asks = root_of(rows.source), [], False
    for place, row in enumerate(islice(rows.rows, upto)):
        found = asked_by(row, root, columns)
        asks = asks or any(found)
        if any(question in tested for question in found):
            places.append(place)
    if not asks:
        questions(rows.subset(range(len(rows) if upto is None else upto)), columns)
    return places
