"""Arithmetic word problems: trained on math_10k (reasoning, then the number), tested on seven sets."""

from __future__ import annotations

from neuroada_cli.data.batch import Example
from neuroada_cli.data.reading import Row
from neuroada_cli.tasks import answers
from neuroada_cli.tasks.task import Decoding, Scoring, Task, text
from neuroada_cli.tasks.templates import RESPONSE, alpaca

ALL = ("MultiArith", "gsm8k", "AddSub", "AQuA", "SingleEq", "SVAMP", "mawps")
SAMPLING = Decoding(beams=4, temperature=0.3, top_p=0.75, top_k=40)  # LoReFT's


def example(row: Row, number: int, protocol: str) -> Example:
    """Alpaca's template around the problem under both protocols; the target is the worked solution.

    Test rows need no solution. Answers are numbers, or option letters (AQuA).
    """
    answer = row["answer"]
    if not isinstance(answer, str | int | float):
        raise TypeError(f"answer is {type(answer).__name__}")
    return Example(alpaca(text(row, "instruction")), str(row.get("output") or ""), str(answer), number)


def _task(name: str, sets: dict[str, str]) -> Task:
    letters = name == "AQuA"
    correct = answers.same_text if letters else answers.same_number
    strict = answers.strict_letter if letters else answers.strict_number

    found = answers.first_letter if letters else answers.last_number
    extract = answers.then(answers.after(RESPONSE), found)
    return Task(
        name=name,
        family="arithmetic",
        kind="generation",
        published=True,
        example=example,
        sets=sets,  # type: ignore[arg-type]
        scoring={
            "reft": Scoring(extract, correct, 512, strict, SAMPLING),
            "llm-adapters": Scoring(extract, correct, 256, strict),
        },
    )


TASKS = [
    _task("math", {"train": "math_10k"}),  # the mixture; `eval` scores its seven test sets
    *(_task(name, {"test": name}) for name in ALL),
]
