"""A tokenizer's chat template, rendered as a function of its messages alone.

Templates may ask for the day. They are told one that stays the same for a run, in English, whatever the
clock, the time zone and the locale of the machine are on which a run goes on or is evaluated.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuroada_cli.data.encoding import end_texts
from neuroada_cli.data.seams import Coder
from neuroada_cli.errors import DataError, unreadable
from neuroada_cli.recipe.schema import DataSection

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # what rows call it; most templates by the first
MOST_BYTES = 1 << 20
LITERAL = re.compile(r"strftime_now\(\s*(\"[^\"]*\"|'[^']*')\s*\)")
DRAWS = re.compile(r"\{[{%][^}]*(?:\|\s*random\b|\blipsum\s*\()")  # what Jinja offers beside transformers
ESCAPES = ("%%", "\0")  # of the percent sign itself, and what stands for it while the others are replaced
# A macro of the name of transformers' function takes its place. What stands in the line behind it begins a
# line, as a template's first line does.
TOLD = (
    "{% macro strftime_now(format) %}{% set told = namespace(text=format) %}"
    "{% for sign, value in day_parts.items() %}{% set told.text = told.text.replace(sign, value) %}"
    "{% endfor %}{{ told.text }}{% endmacro %}\n"
)


class ChatTemplate:
    """One tokenizer's template.

    day     what it is told when it asks for the day
    values  what else it is told (`enable_thinking`)
    """

    def __init__(self, tokenizer: Any, day: datetime.date, values: Mapping[str, Any]) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                "the model's tokenizer has no chat template",
                fix="use data.format: prompt-completion, name one with data.chat_template, or an "
                "instruction-tuned model",
            )
        self._tokenizer, self._values = tokenizer, dict(values)
        self.coder = Coder(tokenizer)
        self.end_texts = end_texts(tokenizer)
        given = tokenizer.chat_template
        self.source = given if isinstance(given, str) else "\n".join(given.values())
        if DRAWS.search(self.source):
            raise DataError(
                "the chat template draws at random, so that no two renderings are alike",
                fix="name one that does not with data.chat_template",
            )
        self.asks_for_the_day = "strftime_now" in self.source
        parts, calls = day_parts(day), self.source.count("strftime_now(")
        if len(LITERAL.findall(self.source)) == calls:  # all formats are known: a sign less is time saved
            parts = {sign: parts[sign] for sign in parts if sign in self.source or sign in ESCAPES}
        self._day_parts = parts

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        values: Mapping[str, Any] | None = None,
        ask: bool = False,
    ) -> str:
        """What the template makes of messages; ask: with the beginning of an answer behind them.

        Raises ValueError for whatever the template does not take.
        """
        told = {**self._values, **(values or {})}
        try:
            template = self._tokenizer.get_chat_template(None, tools)
            if self.asks_for_the_day:
                template, told = TOLD + template, told | {"day_parts": self._day_parts}
            return str(
                self._tokenizer.apply_chat_template(
                    named_alike(messages), tools=tools, chat_template=template, tokenize=False,
                    add_generation_prompt=ask, **told,
                )
            )  # fmt: skip
        except (
            Exception
        ) as error:  # templates are foreign programs: they refuse roles, and fail on what they miss
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            bare = any(message.get("content") is None for message in messages) and "content" in reason
            why = "; it writes no message without content, such as a call of a tool" if bare else ""
            raise ValueError(f"the chat template refuses it: {reason}{why}") from None


def named_alike(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages whose thought has the names by which templates ask for it. Later transformers do so, too."""
    named: list[Mapping[str, Any]] = []
    for message in messages:
        thought = next((message[name] for name in THOUGHTS if message.get(name) is not None), None)
        alike = {"thinking": thought, **message, THOUGHTS[0]: thought}
        named.append(message if thought is None else alike)
    return named


def day_parts(day: datetime.date) -> dict[str, str]:
    """What strftime's signs stand for on a day (its first moment, in English). Longer signs first."""
    iso, of_year = day.isocalendar(), day.timetuple().tm_yday
    name, month = DAYS[day.weekday()], MONTHS[day.month - 1]
    short = f"{day.month:02d}/{day.day:02d}/{day.year % 100:02d}"
    parts = {
        "%-d": str(day.day), "%-m": str(day.month), "%-j": str(of_year), "%-y": str(day.year % 100),
        "%-H": "0", "%-I": "12", "%-M": "0", "%-S": "0",
        "%a": name[:3], "%A": name, "%b": month[:3], "%h": month[:3], "%B": month,
        "%d": f"{day.day:02d}", "%e": f"{day.day:2d}", "%j": f"{of_year:03d}", "%m": f"{day.month:02d}",
        "%Y": f"{day.year:04d}", "%y": f"{day.year % 100:02d}", "%C": f"{day.year // 100:02d}",
        "%G": f"{iso.year:04d}", "%V": f"{iso.week:02d}", "%u": str(iso.weekday), "%w": str(iso.weekday % 7),
        "%U": f"{(of_year + 6 - iso.weekday % 7) // 7:02d}", "%W": f"{(of_year + 7 - iso.weekday) // 7:02d}",
        "%F": f"{day.year:04d}-{day.month:02d}-{day.day:02d}", "%D": short, "%x": short,
        "%c": f"{name[:3]} {month[:3]} {day.day:2d} 00:00:00 {day.year}",
        "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%f": "000000", "%p": "AM", "%T": "00:00:00",
        "%X": "00:00:00", "%R": "00:00", "%r": "12:00:00 AM", "%z": "", "%Z": "", "%n": "\n", "%t": "\t",
    }  # fmt: skip
    return {"%%": "\0", **parts, "\0": "%"}


def today() -> datetime.date:
    """The day on which a run starts."""
    return datetime.date.today()


def use_template(tokenizer: Any, section: DataSection | None) -> None:
    """Give a tokenizer the chat template that a recipe names, so that whatever is saved with it has it, too.

    Raises DataError for a file that cannot be read.
    """
    if section is None or section.chat_template is None:
        return
    file = section.chat_template
    try:
        data = Path(file).expanduser().read_bytes()
        if len(data) > MOST_BYTES:
            raise DataError("is too large for a chat template", file)
        tokenizer.chat_template = data.decode("utf-8")
    except OSError as error:
        raise unreadable(error, file, DataError, "(data.chat_template) cannot be read") from None
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text", file, "save it as UTF-8") from None
