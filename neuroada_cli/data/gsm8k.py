"""GSM8K trained by itself: OpenAI's rows, `question` and `answer` (reasoning, then `#### number`)."""

from __future__ import annotations

from neuroada_cli.data.batch import Example
from neuroada_cli.data.task import Row, Scoring, Task, text
from neuroada_cli.evaluation import answers

TRIGGER = "First think step by step and then answer the final number.\n"
MARK, WORDS = "####", "The final answer is: "
HELD_OUT = 300  # the last rows of the training set are the validation split


def example(row: Row, number: int, protocol: str) -> Example:
    """`{question}` and the instruction; the answer with its mark spelled out."""
    solution = text(row, "answer")
    reasoning, mark, final = solution.rpartition(MARK)
    if not mark:
        raise ValueError(f"answer has no {MARK} line")
    prompt = f"{text(row, 'question')}\nAnswer the above question. {TRIGGER}"
    return Example(prompt, f"{reasoning}{WORDS}{final.strip()}", final.strip(), number)


TASKS = [
    Task(
        name="gsm8k_cot",
        family="gsm8k",
        kind="generation",
        example=example,
        sets={"train": "gsm8k_openai", "test": "gsm8k_openai"},
        scoring={
            protocol: Scoring(
                answers.then(answers.after(TRIGGER), answers.last_number),
                answers.same_number,
                256,
                answers.strict_number,
            )
            for protocol in ("reft", "llm-adapters")
        },
    )
]
