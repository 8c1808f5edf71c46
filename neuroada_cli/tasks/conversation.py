"""Chat rows of every habit as one list of messages: roles, contents, tools, and what is not to be learnt."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from neuroada_cli.data.reading import Row
from neuroada_cli.data.typed import require_plain
from neuroada_cli.tasks.notes import Notes, optional_text

Message = dict[str, Any]
# role in a row -> as chat templates know it
ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant",
    "system": "system", "developer": "developer",
    "tool": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
    "function": "function",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
CALLS = ("function_call", "tool_call")  # roles whose text is the call itself, or a list of them
CALL = "function_call"  # OpenAI's older field of a message, which holds one call
BESIDE = ("tools", "functions", "chat_template_kwargs")  # columns that the template is given, too
NOT_LEARNT = ("weight", "train", "training", "loss")  # keys of a message that say whether it is learnt


@dataclass(frozen=True)
class Conversation:
    """learnt  numbers of the assistant's messages that are learnt
    values  what else the chat template is given, before the recipe's
    spared  numbers of messages, whoever's, that are marked as not to be learnt
    """

    messages: list[Message]
    learnt: list[int]
    tools: list[Any] | None = None
    values: dict[str, Any] = field(default_factory=dict)
    spared: list[int] = field(default_factory=list)


def is_chat(row: Row) -> bool:
    """Whether a row holds messages."""
    return "messages" in row or "conversations" in row or isinstance(row.get("prompt"), list)


def conversation_of(row: Row, notes: Notes | None = None) -> Conversation:
    """`messages` (role, content), ShareGPT's `conversations` (from, value), or lists of messages as `prompt`
    and `completion`; with `system` in front, `tools` (or `functions`) and `chat_template_kwargs`. Calls of
    tools are in `tool_calls`, in OpenAI's older `function_call`, or what ShareGPT's turn of that name says.

    Raises KeyError, TypeError and ValueError for what is no conversation that ends with the assistant.
    """
    raw = raw_messages(row)
    for name, value in (("messages", raw), *((key, row.get(key)) for key in BESIDE)):
        require_plain(name, value)
    pairs = [_message(number, each, notes) for number, each in enumerate(raw)]
    messages = [message for message, _ in pairs]
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("the last message is not the assistant's")
    learnt = [n for n, (message, learn) in enumerate(pairs) if learn and message["role"] == "assistant"]
    spared = [n for n, (_, learn) in enumerate(pairs) if not learn]
    system = optional_text(row, "system", notes)
    if system:
        messages, learnt = _with_system(messages, learnt, system)
        spared = [n + len(messages) - len(pairs) for n in spared]
    values = row.get("chat_template_kwargs") or {}
    if not isinstance(values, dict):
        raise TypeError("chat_template_kwargs is no object")
    said = {key: value for key, value in values.items() if value is not None}  # null leaves it to the recipe
    return Conversation(messages, learnt, _tools(row), said, spared)


def pair_as_conversation(
    asked: str, answer: str, system: str, history: list[tuple[str, str]]
) -> Conversation:
    """Columns of an instruction row as messages."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for question, reply in history:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return Conversation(messages, [n for n, m in enumerate(messages) if m["role"] == "assistant"])


def history_of(row: Row) -> list[tuple[str, str]]:
    """`history`: pairs of what was asked and answered, oldest first. Raises TypeError."""
    pairs = row.get("history") or []
    if not isinstance(pairs, list):
        raise TypeError("history is no list of [asked, answered]")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise TypeError("history is no list of [asked, answered]")
    return [(asked, answered) for asked, answered in pairs]


def text_of(message: Message) -> str:
    """What a message says; "" for one that only calls tools."""
    return "".join(texts_of(message))


def texts_of(message: Message) -> list[str]:
    """The same in parts, between which pictures may stand."""
    content = message.get("content")
    if isinstance(content, list):
        return [part["text"] for part in content if part.get("type") == "text"]
    return [content] if isinstance(content, str) else []


def saying(message: Message, text: str) -> Message:
    """The message with another text, and its pictures in front of it."""
    content = message.get("content")
    if not isinstance(content, list):
        return message | {"content": text}
    pictures = [part for part in content if part.get("type") != "text"]
    return message | {"content": [*pictures, {"type": "text", "text": text}]}


def raw_messages(row: Row) -> list[Any]:
    """The messages of a row as they stand there. Raises KeyError, TypeError and ValueError."""
    if "messages" in row or "conversations" in row:
        found = row["messages"] if "messages" in row else row["conversations"]
        found = json.loads(found) if isinstance(found, str) else found
    else:
        completion = row["completion"]
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        found = [*row["prompt"], *completion]
    if not isinstance(found, list):
        raise TypeError(f"messages is {type(found).__name__}, not a list")
    return found


def _message(number: int, raw: Any, notes: Notes | None) -> tuple[Message, bool]:
    """(a message as templates take it, whether it may be learnt)."""
    if not isinstance(raw, dict):
        raise TypeError(f"message {number} is {type(raw).__name__}, not an object")
    place, said = ("role", "content") if "role" in raw or "from" not in raw else ("from", "value")
    role = raw[place]
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}")
    hidden = {place, said, CALL, *NOT_LEARNT}
    message = {key: value for key, value in raw.items() if key not in hidden and value is not None}
    calls = _calls(message.pop("tool_calls", None))
    if raw.get(CALL) is not None:
        if calls:
            raise ValueError(f"message {number} has both tool_calls and {CALL}")
        calls = _calls(raw[CALL], CALL)
    content = raw.get(said) if calls else raw[said]
    if role in CALLS:
        calls, content = [*calls, *_calls(content, str(role))], None
        if not calls:
            raise ValueError(f"message {number} is a {role}, and names none")
    if calls:
        message["tool_calls"] = calls
    message["role"] = ROLES[role]
    if content is not None or not calls:
        message["content"] = _content(number, content, notes)
    return message, all(_is_learnt(number, key, raw[key]) for key in NOT_LEARNT if raw.get(key) is not None)


def _content(number: int, content: Any, notes: Notes | None) -> str:
    """Text, or a list of parts that are all text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        for part in parts:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                kind = part.get("type", "something") if isinstance(part, dict) else type(part).__name__
                raise TypeError(f"message {number} holds {kind!r}, and only text can be learnt")
        return "".join(part["text"] for part in parts)
    if isinstance(content, bool | int | float):
        if notes is not None:
            notes.say("contents of messages: numbers, true and false become text")
        return json.dumps(content)
    kind = "null" if content is None else type(content).__name__
    raise TypeError(f"message {number}: its content is {kind}, not text")


def _is_learnt(number: int, key: str, value: Any) -> bool:
    if value in (0, 1) or isinstance(value, bool):
        return bool(value)
    raise ValueError(f"message {number}: {key} is {str(value)[:40]!r}, and only 0 and 1 are known")


def _calls(calls: Any, key: str = "tool_calls") -> list[Any]:
    """Tool calls with their arguments as objects, which is how templates write them right.

    calls  a list of calls or one by itself, as objects or as JSON text; each {name, arguments}, or with that
           under `function`
    """
    if isinstance(calls, str):
        try:
            calls = json.loads(calls) if calls.strip() else None
        except ValueError as error:
            raise ValueError(f"{key} is text, and no JSON: {error}") from None
    if calls is None:
        return []
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        raise TypeError(f"{key} is no list")
    found = []
    for call in calls:
        if not isinstance(call, dict):
            raise TypeError(f"a call in {key} is no object")
        whole = call if "function" in call else {"type": "function", "function": call}
        function = whole["function"]
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            function = function | {"arguments": _parsed(function["arguments"])}
        found.append(whole | {"function": function})
    return found


def _parsed(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _tools(row: Row) -> list[Any] | None:
    """The `tools` column, as a list or as JSON text; OpenAI's older `functions` as tools."""
    for key in ("tools", "functions"):
        found = row.get(key)
        if isinstance(found, str):
            found = json.loads(found) if found.strip() else None
        if not found:
            continue
        if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
            raise TypeError(f"{key} is no list of objects")
        return [tool if "function" in tool else {"type": "function", "function": tool} for tool in found]
    return None


def _with_system(messages: list[Message], learnt: list[int], system: str) -> tuple[list[Message], list[int]]:
    if messages[0]["role"] in ("system", "developer"):
        if text_of(messages[0]) != system:
            raise ValueError("it has a system column and another system message")
        return messages, learnt
    return [{"role": "system", "content": system}, *messages], [number + 1 for number in learnt]
