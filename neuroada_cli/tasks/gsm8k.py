"""GSM8K trained by itself: OpenAI's rows, `question` and `answer` (reasoning, then `#### number`)."""

from __future__ import annotations

from neuroada_cli.data.batch import Example
from neuroada_cli.data.reading import Row
from neuroada_cli.tasks import answers
from neuroada_cli.tasks.task import Decoding, Scoring, Task, text

TRIGGER = "First think step by step and then answer the final number.\n"
MARK, WORDS = "####", "The final answer is: "
HELD_OUT = 300  # the last rows of the training set are the validation split
SAMPLING = Decoding(temperature=0.1, top_p=0.95, top_k=40)  # LoReFT's, which names no beams here


def example(row: Row, number: int, protocol: str) -> Example:
    """`{question}` and the instruction; the answer with its mark spelled out (and both spaces: LoReFT)."""
    solution = text(row, "answer")
    if MARK not in solution:
        raise ValueError(f"answer has no {MARK} line")
    final = solution.rpartition(MARK)[2].strip()
    prompt = f"{text(row, 'question')}\nAnswer the above question. {TRIGGER}"
    return Example(prompt, solution.replace(MARK, WORDS), final, number)


TASKS = [
    Task(
        name="gsm8k_cot",
        family="gsm8k",
        kind="generation",
        published=True,
        example=example,
        sets={"train": "gsm8k_openai", "test": "gsm8k_openai"},
        scoring={
            protocol: Scoring(
                answers.then(answers.after(TRIGGER), answers.last_number),
                answers.same_number,
                256,
                answers.strict_number,
                sampling,
            )
            for protocol, sampling in (("reft", SAMPLING), ("llm-adapters", None))
        },
    )
]
