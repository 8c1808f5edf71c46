"""How a question of one's own is put to a model: as the rows were that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from neuroada_cli.data.batch import Example
from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.tasks.chat import ChatRows
from neuroada_cli.tasks.chat_template import ChatTemplate, today, use_template
from neuroada_cli.tasks.conversation import pair_as_conversation
from neuroada_cli.tasks.notes import Notes
from neuroada_cli.tasks.registry import get_protocol, recipe_task
from neuroada_cli.tasks.task import Task, under
from neuroada_cli.tasks.templates import alpaca

Form = Literal["chat", "alpaca", "prompt-completion", "text"]
FORMS: tuple[Form, ...] = get_args(Form)
Turns = Sequence[tuple[str, str]]  # (asked, answered) of the turns before, oldest first
Write = Callable[[str, Turns, str], str]


@dataclass(frozen=True)
class Asking:
    """write     (question, turns before, system) -> the prompt; ValueError for what a template does not take
    how       in words, for a line to the user
    rendered  a chat template writes it, with all special tokens
    turns     whether the turns before are told to the model
    end       what a chat template writes behind an answer as plain text, with the space around it
    """

    write: Write
    how: str
    rendered: bool = False
    turns: bool = False
    end: str = ""

    def example(self, question: str, before: Turns = (), system: str = "") -> Example:
        """The question as a row without an answer. Raises ValueError as `write` does."""
        return Example(self.write(question, before, system), "", "", 0, rendered=self.rendered)


def asking(recipe: Recipe | None, tokenizer: Any, form: str | None = None) -> Asking:
    """How a model is asked that was trained by `recipe` (None: that is not known).

    form  a format of rows of one's own, instead of what the recipe and the tokenizer say
    Raises RecipeError for a task whose rows are no question in words, DataError for a form that needs a chat
    template and a tokenizer without one.
    """
    asked_for = form is not None
    if recipe is not None and form is None:
        task = recipe_task(recipe.data)
        if task.kind != "generation" or task.pictures:
            what = "is shown pictures" if task.pictures else "writes no text"
            raise RecipeError(f"a model for {task.name} {what}", fix="score it with `neuroada eval`")
        if task.name != "instruct":
            return _as_task(under(task, get_protocol(recipe.data.protocol)), recipe.data.protocol)
        form = recipe.data.format
    has_template = bool(getattr(tokenizer, "chat_template", None))
    form = form or ("chat" if has_template else "text")
    if form == "chat":
        own = recipe is not None and recipe.data.chat_template is not None
        if asked_for and not (has_template or own):
            others = ", ".join(each for each in FORMS if each != "chat")
            raise DataError("the model's tokenizer has no chat template", "--format", f"choose {others}")
        return _as_chat(recipe, tokenizer)
    if form == "alpaca":
        return Asking(
            lambda asked, before, system: alpaca(asked, "", system, before), "in Alpaca's form", turns=True
        )
    if form not in FORMS:
        raise RecipeError(f"{form} is no format of rows", "--format", f"choose {', '.join(FORMS)}")
    return Asking(lambda asked, _, system: f"{system}\n\n{asked}" if system else asked, "as it stands")


def _as_chat(recipe: Recipe | None, tokenizer: Any) -> Asking:
    if recipe is not None:
        use_template(tokenizer, recipe.data)
    section = recipe.data if recipe is not None else None
    day = section.date if section is not None and section.date is not None else today()
    template = ChatTemplate(tokenizer, day, section.chat_template_kwargs if section is not None else {})
    # a model that was trained is asked as its rows were, any other as its template asks
    rows = ChatRows(template, "last", Notes()) if section is not None else None

    def write(asked: str, before: Turns, system: str) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        for question, answer in before:
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        messages.append({"role": "user", "content": asked})
        return template.text(messages, ask=True) if rows is None else rows.prompt(messages)

    end = _end_of(template, tokenizer)
    return Asking(write, "by the chat template", rendered=True, turns=True, end=end)


def _end_of(template: ChatTemplate, tokenizer: Any) -> str:
    """What is to be read behind an answer; "" where the template takes no such talk."""
    try:
        row = ChatRows(template, "last", Notes()).example(pair_as_conversation("Why?", "So.", "", []), 0)
    except ValueError:
        return ""
    ids = tokenizer(row.end, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True))  # special tokens are shown nowhere


def _as_task(task: Task, protocol: str) -> Asking:
    """The prompt that the task makes of a row with this question, whatever its column is called."""

    def write(asked: str, _: Turns, system: str) -> str:
        row = dict.fromkeys(("instruction", "question", "message"), asked)
        row |= {"answer": "#### 0", "output": "-", "date": "-"}  # which no prompt shows
        prompt = task.example(row, 0, protocol).prompt
        return f"{system}\n\n{prompt}" if system else prompt

    return Asking(write, f"as rows of {task.name} are")
