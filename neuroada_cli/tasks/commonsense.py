"""Commonsense reasoning: eight multiple-choice sets, trained together and tested apart.

Rows hold `instruction` (the question with its options), `output` ("the correct answer is …") and `answer`.
"""

from __future__ import annotations

from neuroada_cli.data.batch import Example
from neuroada_cli.data.reading import Row
from neuroada_cli.tasks import answers
from neuroada_cli.tasks.task import Decoding, Scoring, Task, text
from neuroada_cli.tasks.templates import alpaca

TRIGGER = "the correct answer is "
# set -> what its answers look like (the first hit counts under llm-adapters)
OPTIONS = {
    "boolq": r"true|false",
    "piqa": r"solution[12]",
    "social_i_qa": r"answer[1-5]",
    "hellaswag": r"ending[1-4]",
    "winogrande": r"option[12]",
    "ARC-Easy": r"answer[1-5]",
    "ARC-Challenge": r"answer[1-5]",
    "openbookqa": r"answer[1-5]",
}
ALL = tuple(OPTIONS)
ANY_OPTION = "|".join(dict.fromkeys(OPTIONS.values()))
SAMPLING = Decoding(beams=4, temperature=0.1, top_p=0.75, top_k=40)  # LoReFT's


def example(row: Row, number: int, protocol: str) -> Example:
    """LoReFT's form, or LLM-Adapters' with Alpaca's template."""
    instruction, answer = text(row, "instruction"), text(row, "answer")
    if protocol == "reft":
        return Example(f"{instruction}\n", TRIGGER + answer, answer, number)
    return Example(alpaca(instruction), row.get("output") or TRIGGER + answer, answer, number)


def _task(name: str, options: str, sets: dict[str, str]) -> Task:
    strict = answers.exact_option(options)
    return Task(
        name=name,
        family="commonsense",
        kind="generation",
        published=True,
        example=example,
        sets=sets,  # type: ignore[arg-type]
        scoring={
            "reft": Scoring(answers.after(TRIGGER), answers.same_text, 32, strict, SAMPLING),
            "llm-adapters": Scoring(answers.first_match(options), answers.same_text, 32, strict),
        },
    )


TASKS = [
    # the mixture that is trained on; scored on its own held-out rows
    _task("commonsense", ANY_OPTION, {"train": "commonsense_170k", "test": "commonsense_15k:validation"}),
    *(_task(name, options, {"train": name, "test": name}) for name, options in OPTIONS.items()),
]
