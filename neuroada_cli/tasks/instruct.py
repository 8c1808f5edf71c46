"""Instruction data of one's own: alpaca, chat messages, prompt and completion, or plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from neuroada_cli.data.batch import Example
from neuroada_cli.data.reading import Row
from neuroada_cli.errors import DataError
from neuroada_cli.tasks import answers
from neuroada_cli.tasks.task import Scoring, Task, text
from neuroada_cli.tasks.templates import alpaca

Shape = Callable[[Row, int], Example]
ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


def from_alpaca(row: Row, number: int) -> Example:
    """`instruction`, optional `input`, `output`."""
    answer = text(row, "output")
    return Example(alpaca(text(row, "instruction"), str(row.get("input") or "")), answer, answer, number)


def from_prompt_completion(row: Row, number: int) -> Example:
    """`prompt`, `completion`."""
    answer = text(row, "completion")
    return Example(text(row, "prompt"), answer, answer, number)


def from_text(row: Row, number: int) -> Example:
    """`text`: all of it is learnt."""
    whole = text(row, "text")
    return Example("", whole, whole, number)


def messages_of(row: Row) -> list[dict[str, str]]:
    """`messages` (role, content), or ShareGPT's `conversations` (from, value), as role and content."""
    if "messages" in row:
        turns = [(m["role"], m["content"]) for m in row["messages"]]
    else:
        turns = [(m["from"], m["value"]) for m in row["conversations"]]
    if not all(isinstance(content, str) for _, content in turns):
        raise TypeError("a message's content is not text")
    unknown = next((role for role, _ in turns if role not in ROLES), None)
    if unknown is not None:
        raise ValueError(f"unknown role {unknown!r}")
    if not turns or ROLES[turns[-1][0]] != "assistant":
        raise ValueError("the last message is not the assistant's")
    return [{"role": ROLES[role], "content": content} for role, content in turns]


def with_template(tokenizer: Any) -> Shape:
    """Chat rows through the tokenizer's own template; the last answer is learnt, all before it is prompt.

    Raises DataError when the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the model's tokenizer has no chat template",
            fix="use data.format: prompt-completion, or an instruction-tuned model",
        )

    import jinja2  # comes with chat templates

    def from_chat(row: Row, number: int) -> Example:
        messages = messages_of(row)
        answer = messages[-1]["content"]
        try:
            prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            # what ends a turn may be more than the end token (Gemma's <end_of_turn>): the template knows
            whole = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
        except jinja2.TemplateError as error:  # templates refuse roles and orders they do not know
            raise ValueError(f"the chat template refuses it: {error}") from None
        target = whole[len(prompt) :] if whole.startswith(prompt) else answer
        return Example(prompt, target.removesuffix(tokenizer.eos_token or ""), answer, number)

    return from_chat


FORMATS: dict[str, Shape] = {
    "alpaca": from_alpaca,
    "prompt-completion": from_prompt_completion,
    "text": from_text,
}


def recognise(row: Row) -> str:
    """The format of a row by its fields. Raises KeyError naming what is missing."""
    if "messages" in row or "conversations" in row:
        return "chat"
    if "completion" in row:
        return "prompt-completion"
    if "instruction" in row:
        return "alpaca"
    if "text" in row:
        return "text"
    raise KeyError("messages, prompt and completion, instruction and output, or text")


def shaped(task: Task, rows: Sequence[Row], form: str | None, tokenizer: Any) -> Task:
    """`task`, with its example function fixed to a format (recognised from the first row without one).

    Raises DataError for rows of no known format, or chat rows and a tokenizer without a template.
    """
    try:
        name = form or recognise(rows[0])
    except KeyError as error:
        raise DataError(f"the first row has none of: {error.args[0]}", fix="set data.format") from None
    shape = with_template(tokenizer) if name == "chat" else FORMATS[name]
    return replace(task, example=lambda row, number, protocol: shape(row, number))


def _example(row: Row, number: int, protocol: str) -> Example:
    form = recognise(row)
    if form == "chat":
        raise ValueError("chat rows need a tokenizer's template")
    return FORMATS[form](row, number)


TASKS = [
    Task(
        name="instruct",
        family="instruct",
        kind="generation",
        example=_example,
        scoring={
            protocol: Scoring(answers.whole, answers.same_text, 256) for protocol in ("reft", "llm-adapters")
        },
    )
]
