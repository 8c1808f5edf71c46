"""Instruction data of one's own: alpaca, chat messages, prompt and completion, or plain text."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from neuroada_cli.data.batch import Example
from neuroada_cli.data.reading import Row
from neuroada_cli.data.sources import Rows
from neuroada_cli.errors import DataError
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks import answers
from neuroada_cli.tasks.chat import ChatRows, Learn
from neuroada_cli.tasks.chat_template import ChatTemplate, today
from neuroada_cli.tasks.columns import recognise
from neuroada_cli.tasks.conversation import conversation_of, history_of, is_chat, pair_as_conversation
from neuroada_cli.tasks.loss_mask import learn_of
from neuroada_cli.tasks.notes import Notes, as_text, optional_text, renamed
from neuroada_cli.tasks.task import BY_LOSS, Protocol, Scoring, Task
from neuroada_cli.tasks.templates import alpaca

Shape = Callable[[Row, int], Example]


def from_alpaca(row: Row, number: int, notes: Notes | None = None) -> Example:
    """`instruction`, optional `input`, `system` and `history`, `output`."""
    answer = as_text(row, "output", notes)
    context, system = optional_text(row, "input", notes), optional_text(row, "system", notes)
    prompt = alpaca(as_text(row, "instruction", notes), context, system, history_of(row))
    return Example(prompt, answer, answer, number)


def from_prompt_completion(row: Row, number: int, notes: Notes | None = None) -> Example:
    """`prompt`, `completion`; `system` stands before the prompt."""
    answer, system = as_text(row, "completion", notes), optional_text(row, "system", notes)
    prompt = as_text(row, "prompt", notes)
    return Example(f"{system}\n\n{prompt}" if system else prompt, answer, answer, number)


def from_text(row: Row, number: int, notes: Notes | None = None) -> Example:
    """`text`: all of it is learnt."""
    whole = as_text(row, "text", notes)
    return Example("", whole, whole, number)


PLAIN: dict[str, Callable[[Row, int, Notes | None], Example]] = {
    "alpaca": from_alpaca,
    "prompt-completion": from_prompt_completion,
    "text": from_text,
}


@dataclass(frozen=True)
class Habits:
    """What a recipe says of rows of one's own, and what is collected of them."""

    form: str | None
    columns: dict[str, str]
    learn: Learn
    day: datetime.date
    values: dict[str, Any]
    notes: Notes


def habits_of(section: DataSection | None, rules: Protocol, notes: Notes | None = None) -> Habits:
    """The same of a recipe's data section; None: everything by its default."""
    learn = learn_of(section, rules)
    if section is None:
        return Habits(None, {}, learn, today(), {}, notes or Notes())
    return Habits(
        section.format,
        section.columns,
        learn,
        section.date or today(),
        section.chat_template_kwargs,
        notes or Notes(),
    )


def shaped(task: Task, rows: Rows, habits: Habits, tokenizer: Any) -> Task:
    """`task`, with its example function fixed to a format (recognised from the first row without one).

    Raises DataError for rows of no known format, or chat rows and a tokenizer without a template.
    """
    form, columns = habits.form, habits.columns
    first = rows.rows[0]
    if form is None:
        form, recognised = recognise(renamed_or_as_it_is(first, columns), rows.place, habits.notes)
        columns = columns or recognised
    elif not columns:
        columns = _columns_of(form, first, rows.place, habits.notes)
    habits.notes.forms.add(form)
    shape = _chat_shape(tokenizer, habits) if form == "chat" else _plain_shape(form, habits.notes)
    return replace(
        task,
        example=lambda row, number, protocol: shape(renamed(row, columns), number),
        metrics=BY_LOSS if form == "text" else task.metrics,
    )


def _columns_of(form: str, first: Row, source: str, notes: Notes) -> dict[str, str]:
    """Other names of columns in rows whose format is named, where they are read as rows of that format."""
    seen = Notes()
    try:
        found, columns = recognise(first, source, seen)
    except DataError:  # what these rows lack is said of each
        return {}
    if found != form:
        return {}
    if columns:
        notes.read_as(columns)
    return columns


def renamed_or_as_it_is(row: Row, columns: dict[str, str]) -> Row:
    """A first row only has to show what rows look like: what it lacks is found when it is read."""
    return renamed(row, {ours: theirs for ours, theirs in columns.items() if theirs in row})


def _plain_shape(form: str, notes: Notes) -> Shape:
    return lambda row, number: PLAIN[form](row, number, notes)


def _chat_shape(tokenizer: Any, habits: Habits) -> Shape:
    """Chat rows, and instruction rows that `data.format: chat` makes chats of."""
    template = ChatTemplate(tokenizer, habits.day, habits.values)
    chats, notes = ChatRows(template, habits.learn, habits.notes), habits.notes

    def shape(row: Row, number: int) -> Example:
        if is_chat(row):
            return chats.example(conversation_of(row, notes), number)
        asked, answer = ("prompt", "completion") if "prompt" in row else ("instruction", "output")
        if asked not in row:
            raise KeyError("messages")
        context = optional_text(row, "input", notes)
        question = as_text(row, asked, notes) + (f"\n{context}" if context else "")
        pair = pair_as_conversation(
            question, as_text(row, answer, notes), optional_text(row, "system", notes), history_of(row)
        )
        return chats.example(pair, number)

    notes.fields = chats.unwritten
    return shape


def _example(row: Row, number: int, protocol: str) -> Example:
    form, columns = recognise(row, "these rows")
    if form == "chat":
        raise ValueError("chat rows need a tokenizer's template")
    return PLAIN[form](renamed(row, columns), number, None)


TASKS = [
    Task(
        name="instruct",
        family="instruct",
        kind="generation",
        example=_example,
        scoring={
            protocol: Scoring(answers.whole, answers.same_text, 256) for protocol in ("reft", "llm-adapters")
        },
        metrics=("accuracy", "rouge_l", "rouge_1"),
    )
]
