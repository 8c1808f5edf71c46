"""Questions and talks about pictures, written by the template of the model's processor.

The answer is learnt, all before it is prompt. Answers are scored by VQA accuracy (`tasks.vqa`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from neuroada_cli.data.batch import Example
from neuroada_cli.data.images import pictures_in
from neuroada_cli.data.reading import Row
from neuroada_cli.tasks import vqa
from neuroada_cli.tasks.chat import ChatRows
from neuroada_cli.tasks.chat_template import ChatTemplate
from neuroada_cli.tasks.conversation import Conversation
from neuroada_cli.tasks.instruct import Habits
from neuroada_cli.tasks.task import Split, Task, text

Message = dict[
    str, Any
]  # role, and content as a list of parts: {"type": "image"}, {"type": "text", "text": …}
# row -> (messages, the answer last; what people answered)
Talk = Callable[[Row], tuple[list[Message], list[str]]]

PLACE = "<image>"  # where LLaVA's rows have a picture, whatever the model's own token for it
ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
SHORT = "\nAnswer the question using a single word or phrase."  # LLaVA-1.5's, arXiv:2310.03744, table 7


def asked_once(row: Row, behind: str = "") -> tuple[list[Message], list[str]]:
    """`question`, and one `answer` or several `answers` (texts, or VQA's {"answer": text}), of which the most
    common is learnt.
    """
    people = _people(row)
    question, pictures = text(row, "question") + behind, _pictures(row)
    if not pictures:
        raise KeyError("image")
    return [_user(len(pictures), question), _said("assistant", vqa.most_common(people))], people


def talk_of(row: Row) -> tuple[list[Message], list[str]]:
    """A row of one's own: `question` and answers, `prompt` and `completion`, `conversations`, `messages`."""
    if "question" in row:
        return asked_once(row)
    if "completion" in row:
        answer = text(row, "completion")
        return [_user(len(_pictures(row)), text(row, "prompt")), _said("assistant", answer)], [answer]
    if "messages" not in row and "conversations" not in row:
        raise KeyError("question, prompt, messages or conversations")
    if "messages" in row:
        turns = [(turn["role"], turn["content"]) for turn in row["messages"]]
    else:
        turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
    messages = [_turn(role, content) for role, content in turns]
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("the last message is not the assistant's")
    _place(messages, len(_pictures(row)))
    return messages, [_text_of(messages[-1])]


def shaped(task: Task, tokenizer: Any, habits: Habits) -> Task:
    """`task`, its prompts written by the chat template.

    Raises DataError for a tokenizer (with its processor's) without one.
    """
    template, talk = ChatTemplate(tokenizer, habits.day, habits.values), TALKS[task.name]
    chats = ChatRows(template, "last", habits.notes)
    habits.notes.fields = chats.unwritten

    def example(row: Row, number: int, protocol: str) -> Example:
        messages, people = talk(row)
        pictures = _pictures(row)
        found = chats.example(Conversation(messages, [len(messages) - 1]), number)
        return replace(found, answer=vqa.reference_of(people), pictures=pictures)

    return replace(task, example=example)


def _pictures(row: Row) -> tuple[bytes | str, ...]:
    """Those in `image`, or in `images` as other trainers name a list of them; a null is none."""
    key = "images" if row.get("image") is None else "image"
    return () if row.get(key) is None else pictures_in(row, key)


def _text_of(message: Message) -> str:
    return "".join(part["text"] for part in message["content"])


def _people(row: Row) -> list[str]:
    if "answers" not in row:
        return [text(row, "answer")]
    found = [each["answer"] if isinstance(each, dict) else each for each in row["answers"]]
    if not found or not all(isinstance(each, str) and each.strip() for each in found):
        raise TypeError("answers holds something that is no text, or nothing")
    return found


def _user(pictures: int, question: str) -> Message:
    content: list[dict[str, str]] = [{"type": "image"}] * pictures
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}


def _said(role: str, words: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": words}]}


def _turn(role: Any, content: Any) -> Message:
    """A message of parts: its text is cut where a picture stands in it."""
    if role not in ROLES:
        raise ValueError(f"unknown role {str(role)[:40]!r}")
    if isinstance(content, list):
        if odd := [part for part in content if part.get("type") not in ("image", "text")]:
            raise ValueError(f"a message has a part of type {str(odd[0].get('type'))[:40]!r}")
        parts = [
            {"type": "image"} if part["type"] == "image" else {"type": "text", "text": text(part, "text")}
            for part in content
        ]
        return {"role": ROLES[role], "content": parts}
    if not isinstance(content, str):
        raise TypeError("a message's content is neither text nor parts")
    pieces = content.split(PLACE)
    parts = [{"type": "text", "text": pieces[0].rstrip("\n")}]
    for piece in pieces[1:]:
        parts += [{"type": "image"}, {"type": "text", "text": piece.lstrip("\n")}]
    return {"role": ROLES[role], "content": [part for part in parts if part.get("text") != ""]}


def _place(messages: list[Message], pictures: int) -> None:
    """Pictures that no message has a place for go first; otherwise there are as many places as pictures."""
    places = sum(part["type"] == "image" for message in messages for part in message["content"])
    first = next((message for message in messages if message["role"] == "user"), messages[0])
    if places == 0:
        first["content"][:0] = [{"type": "image"}] * pictures
    elif places != pictures:
        raise ValueError(f"its messages have places for {places} pictures, and it has {pictures}")
    if any(part["type"] == "image" for part in messages[-1]["content"]):
        raise ValueError("the answer has a place for a picture")


def _unasked(row: Row, number: int, protocol: str) -> Example:
    raise ValueError("questions about pictures need the template of a model's processor")


def _task(name: str, sets: dict[Split, str]) -> Task:
    return Task(
        name=name,
        family="image-text",
        kind="generation",
        example=_unasked,
        sets=sets,
        scoring={"reft": vqa.scoring()},
        metrics=("vqa_accuracy",),
        pictures=True,
    )


OWN = "image_text"  # the task of rows of one's own
TALKS: dict[str, Talk] = {
    "shapes_vqa": asked_once,
    "textvqa": lambda row: asked_once(row, SHORT),
    OWN: talk_of,
}
TASKS = [
    _task("shapes_vqa", {"train": "shapes", "validation": "shapes:validation", "test": "shapes"}),
    _task("textvqa", {"train": "textvqa", "test": "textvqa:validation"}),
    _task(OWN, {}),
]
