"""Which questions stand in two sets: test questions that a model was trained on measure memory.

Rows are compared by what they ask, not by prompts: a question is the same one in another template.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path

from neuroada_cli.data.images import content_hash, pictures_in, root_of
from neuroada_cli.data.reading import Row
from neuroada_cli.data.sources import Rows, load_rows
from neuroada_cli.tasks.conversation import conversation_of, is_chat, text_of
from neuroada_cli.tasks.task import Task

# what rows of any family ask, in the order in which it is put together; the rest is answers
ASKED = (
    "instruction", "input", "question", "query", "problem", "context", "message", "prompt", "text",
    "sentence", "sentence1", "sentence2", "question1", "question2", "premise", "hypothesis",
)  # fmt: skip

PICTURES = ("image", "images", "img")  # fields that hold them, where a row has some


def normalise(text: str) -> str:
    """Letters and digits alone, in lower case: copies of a set differ in spaces before punctuation, too."""
    return "".join(filter(str.isalnum, text.lower()))


def question_of(row: Row) -> str:
    """What a row asks, normalised; "" for a row that asks nothing."""
    if is_chat(row):
        try:
            return normalise("".join(map(text_of, conversation_of(row).messages[:-1])))
        except (KeyError, TypeError, ValueError, AttributeError):  # no conversation
            pass
    return normalise("".join(value for key in ASKED if isinstance(value := row.get(key), str)))


def asked_by(row: Row, root: Path | None) -> str:
    """What a row asks, and about which picture: the same words about another picture ask something else.

    root  the folder that paths of pictures start from
    """
    return question_of(row) + "".join(_seen(value, root) for key in PICTURES for value in _held(row, key))


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


def questions(rows: Rows) -> frozenset[str]:
    """The normalised questions of rows."""
    root = root_of(rows.source)
    return frozenset(asked_by(row, root) for row in rows.rows) - {""}


def questions_of_tests(tasks: Iterable[Task], data_dir: str | None) -> frozenset[str]:
    """The questions of the test sets of tasks; a task without a set of its own adds none.

    Raises DataError for a set that cannot be loaded.
    """
    sources = (task.sets["test"] for task in tasks if "test" in task.sets)
    return frozenset().union(*(questions(load_rows(source, "test", data_dir)) for source in sources))


def leaked(rows: Rows, seen: Collection[str], upto: int | None = None) -> list[int]:
    """The places of the rows (of the first `upto`) whose question is among the questions `seen`."""
    root = root_of(rows.source)
    return [place for place, row in enumerate(islice(rows.rows, upto)) if asked_by(row, root) in seen]
