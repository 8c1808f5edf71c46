"""PEFT's method comparison: MetaMathQA trained, GSM8K asked, under the rules of its own scripts.

One line asks and one answers, the loss is on all of it, an answer counts where its value is the reference's:
https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA
"""

from __future__ import annotations

from decimal import Decimal, DivisionByZero, InvalidOperation

from neuroada_cli.data.batch import Example
from neuroada_cli.data.reading import Row
from neuroada_cli.tasks import answers
from neuroada_cli.tasks.task import Scoring, Task, text

MARKS = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")
NEW_TOKENS = 512  # theirs: what is left of 768 tokens behind the prompt


def stated(completion: str) -> str:
    """What stands on one line behind the last mark of the first kind that occurs; "" for none."""
    whole = completion.strip().rstrip(".!?")
    mark = next((mark for mark in MARKS if mark in whole), None)
    return "" if mark is None else whole.rpartition(mark)[2].strip().split("\n", 1)[0].strip(" .!?$%")


def same_value(found: str, reference: str) -> bool:
    """Equal as numbers (fractions as well), else as text; nothing found is wrong."""
    one, other = _value(found), _value(reference)
    return found != "" and (found == reference if one is None or other is None else one == other)


def _value(written: str) -> float | None:
    above, slash, below = written.partition("/")
    try:
        value = Decimal(above.strip()) / (Decimal(below.strip()) if slash else 1)
    except (DivisionByZero, InvalidOperation, ValueError):
        return None
    return float(value)


def example(row: Row, number: int, protocol: str) -> Example:
    """MetaMathQA's `query` and `response`, or GSM8K's `question` and `answer`."""
    columns = ("query", "response") if "query" in row else ("question", "answer")
    query, response = (text(row, column) for column in columns)
    final = stated(response)
    if not final:
        raise ValueError(f"{columns[1]} states no answer")
    return Example(f"Question: {query} Think step by step.\nAnswer:", response, final, number)


TASKS = [
    Task(
        name="metamath",
        family="metamath",
        kind="generation",
        published=True,
        example=example,
        sets={"train": "metamath", "test": "gsm8k_openai"},
        scoring={
            "peft": Scoring(
                answers.then(answers.whole, stated), same_value, NEW_TOKENS, answers.strict_number
            )
        },
    )
]
