"""Chat rows through the tokenizer's template: what is asked, what is learnt of it, and what is the answer.

A turn is learnt as the template writes it for a conversation that ends there, from where the template asks
for it: what it puts in front of the answer (an empty thought, say) is learnt with it, and so is what ends it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from neuroada_cli.data.batch import Example
from neuroada_cli.tasks.chat_template import ChatTemplate
from neuroada_cli.tasks.conversation import Conversation, Message, saying, text_of, texts_of
from neuroada_cli.tasks.notes import Notes

Learn = Literal["last", "assistant", "all"]
MARK = "QanswerZ"  # stands for an answer, to find what a template writes around it
LEFT_OUT = "the chat template leaves the assistant's message out, or rewrites it"
TRIES = 20  # rows in which a field may make no difference before the template counts as leaving it out
THOUGHT = re.compile(  # in front of an answer, as models write it
    r"\s*(?:<(think|thinking|thought|reasoning)>|\[THINK\])(.*?)(?(1)</\1>|\[/THINK\])\s*(?=\S)", re.S
)


@dataclass(frozen=True)
class Turn:
    """prompt  what stands before it when it is asked for
    target  what is learnt: lead, the answer, and the template's end of the turn
    end     what of target stands behind the answer, without an end token of the model
    """

    prompt: str
    target: str
    lead: str
    end: str
    answer: str


class ChatRows:
    """Examples of conversations under one template."""

    def __init__(self, template: ChatTemplate, learn: Learn, notes: Notes) -> None:
        self._template, self._learn, self._notes = template, learn, notes
        self._written: set[str] = set()
        self._tried: Counter[str] = Counter()
        notes.day |= template.asks_for_the_day

    def example(self, conversation: Conversation, number: int) -> Example:
        """The conversation up to its last answer that is learnt. Earlier ones are learnt within it, or as
        rows of their own where the template writes them otherwise by then.

        Raises ValueError for what the template does not take, or leaves out.
        """
        talk = self._as_known(conversation)
        learnt = talk.learnt[-1:] if self._learn == "last" else talk.learnt
        if not learnt:
            raise ValueError("no message of the assistant is to be learnt")
        if self._learn == "all" and talk.spared:
            raise ValueError(
                f"message {talk.spared[0]} is not to be learnt, and with data.learn: all every token is; "
                "choose data.learn: assistant, or leave the message's mark out"
            )
        for at in learnt[:-1]:
            if not text_of(talk.messages[at]).strip() and "tool_calls" not in talk.messages[at]:
                raise ValueError(f"message {at}, which is to be learnt, is empty")
        turns = [self._turn(talk, at) for at in learnt]
        self._check_written(talk, learnt[-1], turns[-1])
        rows: list[tuple[Turn, list[tuple[int, int]]]] = []
        for turn in reversed(turns):
            for row, spans in rows:
                if (row.prompt + row.target).startswith(turn.prompt + turn.target):
                    spans.insert(0, (len(turn.prompt), len(turn.prompt) + len(turn.target)))
                    break
            else:
                rows.append((turn, []))
        examples = [self._made(turn, spans, number) for turn, spans in rows]
        last, *apart = examples
        return Example(**{**vars(last), "apart": tuple(reversed(apart))})

    def prompt(self, messages: Sequence[Message]) -> str:
        """What a model that has learnt such rows is asked with: what stands before the answer in training.

        Raises ValueError for what the template does not take, or leaves out.
        """
        talk = self._as_known(Conversation([*messages, {"role": "assistant", "content": MARK}], []))
        opening, found, _ = self._text(talk, talk.messages).rpartition(MARK)
        if not found:
            raise ValueError(LEFT_OUT)
        return self._asked_and_written(self._text(talk, talk.messages[:-1], ask=True), opening)

    def _made(self, turn: Turn, spans: list[tuple[int, int]], number: int) -> Example:
        return Example(
            turn.prompt, turn.target, turn.answer, number, rendered=True, lead=turn.lead, end=turn.end,
            learnt=tuple(spans),
        )  # fmt: skip

    def _as_known(self, talk: Conversation) -> Conversation:
        """Roles that the template does not know by name as those that stand for them elsewhere."""
        others = {"developer": "system", "function": "tool"}
        messages = []
        for message in talk.messages:
            role = message["role"]
            if role in others and role not in self._template.source:
                self._notes.say(f"the chat template knows no role {role}, which becomes {others[role]}")
                role = others[role]
            messages.append(message | {"role": role})
        return replace(talk, messages=messages)

    def _text(self, talk: Conversation, messages: Sequence[Message], ask: bool = False) -> str:
        return self._template.text(messages, talk.tools, talk.values, ask)

    def _turn(self, talk: Conversation, at: int) -> Turn:
        before, message = talk.messages[:at], talk.messages[at]
        asked = self._text(talk, before, ask=True) if at else ""
        whole = self._text(talk, talk.messages[: at + 1])
        content = text_of(message)
        thought = THOUGHT.match(content)
        marked = {k: v for k, v in message.items() if k != "tool_calls"}
        marked = saying(marked, f"{thought[0] if thought else ''}{MARK}")
        opening, found, tail = self._text(talk, [*before, marked]).rpartition(MARK)
        if not found:
            raise ValueError(LEFT_OUT)
        prompt = self._asked_and_written(asked, opening) if at else opening
        self._note_changed(content, thought, whole)
        said = text_of(before[-1]).strip() if before else ""
        if not whole.startswith(prompt) or (said in opening and said not in prompt):
            raise ValueError("the chat template asks for the answer otherwise than it writes it")
        lead = opening[len(prompt) :] if whole.startswith(opening) else ""
        target = whole[len(prompt) :]
        if "tool_calls" in message or not target.endswith(tail) or len(lead) + len(tail) > len(target):
            target, tail = target.rstrip(), ""
        kept, end = self._end(tail)
        target = target[: len(target) - len(tail)] + kept
        answer = content[thought.end() :] if thought else content
        if "tool_calls" in message:
            answer = target[len(lead) :]
        return Turn(prompt, target, lead, end, answer)

    def _note_changed(self, content: str, thought: re.Match[str] | None, whole: str) -> None:
        """Count an answer of which the template writes less, or something else."""
        if thought and thought[2].strip() not in whole:
            self._notes.say("the chat template leaves out the thought in front of the answer")
        if (content[thought.end() :] if thought else content).strip() not in whole:
            self._notes.say("the chat template writes the answer otherwise than it stands in the row")

    def _end(self, tail: str) -> tuple[str, str]:
        """(what of a turn's tail is learnt, what of that is no end token): up to the first end token, else
        all but the white space at its end.
        """
        places = [(tail.index(text), text) for text in self._template.end_texts if text in tail]
        if not places:
            return tail.rstrip(), tail.rstrip()
        place, text = min(places)
        return tail[: place + len(text)], tail[:place]

    def _asked_and_written(self, asked: str, opening: str) -> str:
        """What the template's request for an answer and its turn have in common, in whole tokens."""
        pairs = zip(asked, opening, strict=False)
        shorter = min(len(asked), len(opening))
        common = opening[: next((n for n, (a, b) in enumerate(pairs) if a != b), shorter)]
        if common != asked:
            self._notes.say(
                f"the chat template asks with {asked[len(common) :].strip()[:40]!r}, which no finished "
                "answer shows: learnt, and asked in eval, without it"
            )
        if common in (asked, opening):
            return common
        coder = self._template.coder
        tokens = coder.ids(opening, rendered=True)
        for end in range(len(common), 0, -1):
            ids = coder.ids(common[:end], rendered=True)
            if tokens[: len(ids)] == ids and coder.ids(asked, rendered=True)[: len(ids)] == ids:
                return common[:end]
        return ""

    def _check_written(self, talk: Conversation, last: int, turn: Turn) -> None:
        """Refuse a message that the template leaves out, and note other fields that make no difference."""
        whole, messages = turn.prompt + turn.target, talk.messages[: last + 1]
        for at, message in enumerate(messages[:-1]):
            if any(part.strip() not in whole for part in texts_of(message)):
                if message["role"] in ("system", "user"):
                    role = message["role"]
                    self._notes.say(f"the chat template writes {role} messages otherwise than in the row")
                marked = [*messages[:at], saying(message, MARK), *messages[at + 1 :]]
                if MARK not in self._text(talk, marked):
                    raise ValueError(f"the chat template leaves out message {at} ({message['role']})")
        full = self._text(talk, messages)
        for key in sorted({key for message in messages for key in message} - {"role", "content"}):
            bare = [{k: v for k, v in message.items() if k != key} for message in messages]
            self._prove(f"messages' {key}", full, Conversation(bare, talk.learnt, talk.tools, talk.values))
        if talk.tools:
            self._prove("tools", full, Conversation(messages, talk.learnt, None, talk.values))

    def _prove(self, what: str, full: str, without: Conversation) -> None:
        """Whether the template writes a field is known once it makes a difference."""
        if what in self._written or self._tried[what] >= TRIES:
            return
        try:
            same = self._text(without, without.messages) == full
        except ValueError:  # it cannot do without
            same = False
        if same:
            self._tried[what] += 1
        else:
            self._written.add(what)

    def unwritten(self) -> list[str]:
        """Fields that the template leaves out of every row that was looked at."""
        return sorted(set(self._tried) - self._written)
