"""The quickstart's task: read the date in an office message and write it as YYYY-MM-DD.

The rows are made here from a seed, so the first tour needs no download. Held-out rows measure learning, not
memory: the calendar days of training, validation and test are disjoint, and half of the test rows use
sentences that training never shows.
"""

from __future__ import annotations

from neuroada_cli.data.batch import Example
from neuroada_cli.data.reading import Row
from neuroada_cli.tasks import answers
from neuroada_cli.tasks.task import Scoring, Task, text


def example(row: Row, number: int, protocol: str) -> Example:
    """The message and the question; the target is the date."""
    prompt = f"{text(row, 'message')}\nDate (YYYY-MM-DD): "
    return Example(prompt, text(row, "date"), text(row, "date"), number)


TASKS = [
    Task(
        name="due_dates",
        family="due_dates",
        kind="generation",
        example=example,
        sets={"train": "due_dates", "validation": "due_dates:validation", "test": "due_dates"},
        scoring={
            # lenient, to be fair to a base that goes on writing behind the date
            protocol: Scoring(answers.first_match(r"\d{4}-\d\d-\d\d"), answers.same_text, 16)
            for protocol in ("reft", "llm-adapters")
        },
    )
]
