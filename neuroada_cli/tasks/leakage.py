"""Which questions stand in two sets: test questions that a model was trained on measure memory.

Rows are compared by what they ask, not by prompts: a question is the same one in another template.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from neuroada_cli.data.reading import Row
from neuroada_cli.data.sources import load_rows
from neuroada_cli.tasks.conversation import conversation_of, is_chat, text_of
from neuroada_cli.tasks.task import Task

# what rows of any family ask, in the order in which it is put together; the rest is answers
ASKED = (
    "instruction", "input", "question", "query", "problem", "context", "message", "prompt", "text",
    "sentence", "sentence1", "sentence2", "question1", "question2", "premise", "hypothesis",
)  # fmt: skip


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


def questions(rows: Iterable[Row]) -> frozenset[str]:
    """The normalised questions of rows."""
    return frozenset(map(question_of, rows)) - {""}


def questions_of_tests(tasks: Iterable[Task], data_dir: str | None) -> frozenset[str]:
    """The questions of the test sets of tasks; a task without a set of its own adds none.

    Raises DataError for a set that cannot be loaded.
    """
    sources = (task.sets["test"] for task in tasks if "test" in task.sets)
    return frozenset().union(*(questions(load_rows(source, "test", data_dir).rows) for source in sources))


def leaked(rows: Sequence[Row], seen: Collection[str]) -> list[int]:
    """The places of the rows whose question is among the normalised questions `seen`."""
    return [place for place, row in enumerate(rows) if question_of(row) in seen]
