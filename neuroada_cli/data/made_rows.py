"""Rows of the task due_dates, made from a seed, so that the first tour needs no download.

Held-out rows measure learning, not memory: the calendar days of training, validation and test are disjoint,
and half of the test rows use sentences that training never shows.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable

FOR_READERS = ("template",)  # columns
FIRST_DAY = datetime.date(2015, 1, 1)
DAYS = 20 * 365
# Every tenth calendar day is for the test, the next for validation, the other eight for training.
SPLIT_OF_DAY = ("test", "validation", *["train"] * 8)
# Written out, since strftime's names depend on the machine's locale.
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ORDINAL_WORDS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth",
    "eighteenth", "nineteenth", "twentieth", "twenty-first", "twenty-second", "twenty-third",
    "twenty-fourth", "twenty-fifth", "twenty-sixth", "twenty-seventh", "twenty-eighth", "twenty-ninth",
    "thirtieth", "thirty-first",
)  # fmt: skip
TRAINING_SENTENCES = (
    "Please send {thing} to {person} by {date}.",
    "{thing} is due on {date}, {person} says.",
    "{person} needs {thing} no later than {date}.",
    "Reminder: {thing} must be signed by {date}.",
    "We meet {person} about {thing} on {date}.",
    "Could you finish {thing} before {date}? Thanks, {person}",
    "On {date}, {person} presents {thing} in room {number}.",
    "{person}: {thing} was moved to {date}, order {number}.",
    "Deadline {date} for {thing}, ask {person} if unsure.",
    "{person} is away until {date}, so {thing} can wait.",
)
HELD_OUT_SENTENCES = (
    "As agreed with {person}, {thing} goes out on {date}.",
    "Hello team, {date} is the last day for {thing}. {person}",
    "{thing} (no. {number}) has to reach {person} by {date}.",
    "Heads-up from {person}: expect {thing} around {date}.",
)
THINGS = (
    "the budget", "the contract", "the audit report", "the slide deck", "the invoice", "the travel plan",
    "the floor plan", "the price list", "the minutes", "the tax form", "the draft", "the survey",
)  # fmt: skip
PEOPLE = ("Anna", "Ben", "Chen", "Dalia", "Emeka", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Keiko", "Lena")


FORMATS: tuple[Callable[[datetime.date], str], ...] = (
    lambda day: f"{day.day} {_month(day)} {day.year}",
    lambda day: f"{_month(day)} {day.day}, {day.year}",
    lambda day: f"the {_ordinal(day.day)} of {_month(day)} {day.year}",
    lambda day: f"{_month(day)} {_ordinal(day.day)}, {day.year}",
    lambda day: f"{day.day} {_month(day)[:3]} {day.year}",
    lambda day: f"{_month(day)[:3]}. {day.day}, {day.year}",
    lambda day: f"{_weekday(day)}, {day.day} {_month(day)} {day.year}",
    lambda day: f"{_weekday(day)[:3]} {_month(day)[:3]} {day.day} {day.year}",
    lambda day: f"the {ORDINAL_WORDS[day.day - 1]} of {_month(day)}, {day.year}",
    lambda day: f"{day:%d/%m/%Y} (day/month/year)",
    lambda day: f"{day:%m/%d/%Y} (month/day/year)",
    lambda day: f"{day:%d.%m.%Y}",
)


def make_rows(split: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` rows of a split ("train", "validation", "test"), the same for the same seed.

    Each row holds `message` and `date` (YYYY-MM-DD), and for readers `template` ("seen" or "new").
    Raises ValueError for another split.
    """
    if split not in SPLIT_OF_DAY:
        raise ValueError(f"{split!r} is not a split of due_dates")
    chance = random.Random(f"due_dates {split} {seed}")
    days = [n for n in range(DAYS) if SPLIT_OF_DAY[n % len(SPLIT_OF_DAY)] == split]
    return [_row(chance, split, FIRST_DAY + datetime.timedelta(chance.choice(days))) for _ in range(count)]


def _row(chance: random.Random, split: str, day: datetime.date) -> dict[str, str]:
    new = split == "test" and chance.random() < 0.5
    sentence = chance.choice(HELD_OUT_SENTENCES if new else TRAINING_SENTENCES)
    message = sentence.format(
        thing=chance.choice(THINGS),
        person=chance.choice(PEOPLE),
        number=chance.randrange(100, 1000),
        date=chance.choice(FORMATS)(day),
    )
    return {
        "message": message[0].upper() + message[1:],
        "date": day.isoformat(),
        "template": "new" if new else "seen",
    }


def _ordinal(number: int) -> str:
    suffix = "th" if 11 <= number % 100 <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def _month(day: datetime.date) -> str:
    return MONTHS[day.month - 1]


def _weekday(day: datetime.date) -> str:
    return WEEKDAYS[day.weekday()]
