"""Extraction and scoring rules of the published protocols, and stricter ones beside them.

The papers' rules are kept to the letter, however lenient: results under them are only comparable if they are
the same. `strict_*` are our own, reported in a column of their own.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import re
import threading
from collections.abc import Callable

from neuroada_cli.tasks.letters import letter_in
from neuroada_cli.tasks.numerals import as_mathematics, without_percent

NUMBER = re.compile(r"-?\d+\.?\d*")
LETTERS = re.compile(r"[A-E]")
CLOSE = 1e-3
VERIFY_SECONDS = 3

Rule = Callable[[str], str]  # text -> what was found in it, "" for nothing
Extract = Callable[[str, str], str]  # (prompt, completion) -> the same


def after(trigger: str) -> Extract:
    """The text behind the first trigger in prompt + completion, left-stripped; none: nothing (LoReFT)."""

    def extract(prompt: str, completion: str) -> str:
        _, found, rest = (prompt + completion).partition(trigger)
        return rest.lstrip() if found else ""

    return extract


def first_match(pattern: str) -> Extract:
    """The first hit of a pattern in the completion (LLM-Adapters)."""
    compiled = re.compile(pattern)

    def extract(prompt: str, completion: str) -> str:
        found = compiled.search(completion)
        return found[0] if found else ""

    return extract


def whole(prompt: str, completion: str) -> str:
    return completion.strip()


def then(extract: Extract, rule: Rule) -> Extract:
    """One rule on what another extracted."""
    return lambda prompt, completion: rule(extract(prompt, completion))


def last_number(text: str) -> str:
    """Commas dropped, the last match of -?\\d+\\.?\\d* (both protocols)."""
    found: list[str] = NUMBER.findall(text.replace(",", ""))
    return found[-1] if found else ""


def first_letter(text: str) -> str:
    """The first capital A to E anywhere, so "Dave" is a D (both protocols; mostly noise)."""
    found = LETTERS.search(text)
    return found[0] if found else ""


def same_text(found: str, reference: str) -> bool:
    return bool(found) and found.strip() == reference.strip()


def is_number(text: str) -> bool:
    """Whether `same_number` can compare with it."""
    try:
        return math.isfinite(float(text.replace(",", "")))
    except (ValueError, OverflowError):
        return False


def same_number(found: str, reference: str) -> bool:
    """Within 1e-3; nothing found is wrong."""
    try:
        difference = float(found) - float(reference.replace(",", ""))
    except ValueError:
        return False
    return math.isfinite(difference) and abs(difference) <= CLOSE


NEXT_QUESTION = re.compile(  # that the model goes on to ask itself
    r"\n[^\S\n]*(?:#+\s*|\*\*)?(?:question|instruction|problem|exercise|user|human|q)\s*\d{0,3}[*_]{0,2}\s*:",
    re.IGNORECASE,
)


def own_answer(completion: str) -> str:
    """A completion up to the next question that it makes up for itself: what every strict scorer reads."""
    said = NEXT_QUESTION.split(completion, maxsplit=1)[0]
    return said if said.strip() else completion


def exact_option(options: str) -> Callable[[str, str], bool]:
    """Strict: the completion is one option, give or take "the correct answer is" and a final full stop."""
    form = re.compile(rf"\s*(?:the correct answer is\s+)?({options})\s*\.?\s*", re.IGNORECASE)

    def strict(completion: str, reference: str) -> bool:
        found = form.fullmatch(own_answer(completion))
        return found is not None and found[1].lower() == reference.strip().lower()

    return strict


def strict_letter(completion: str, reference: str) -> bool:
    """Strict: the letter that is given as the answer, not any capital (`letters.letter_in`)."""
    return letter_in(own_answer(completion)) == reference.strip()


# "3 or 4" at the end is no answer, though math-verify would take its last number for one.
HEDGE = re.compile(r"\d[\d.,/]*\W{0,3}\s+or\s+\W{0,3}\d[\d.,/]*(?:\s+[^\W\d]+)?\W*$")


def can_verify() -> bool:
    """Whether the package behind `strict_number` is installed."""
    return importlib.util.find_spec("math_verify") is not None


def strict_number(completion: str, reference: str) -> bool:
    """Strict: math-verify finds the reference's value in the completion.

    A choice between two numbers is wrong. A percentage is right by its number, or by its hundredth part.
    Raises ImportError without the extra `strict`; `evaluation.run` then leaves the column out.
    """
    from math_verify import parse, verify

    completion = as_mathematics(own_answer(completion))
    if HEDGE.search(completion):
        return False
    # A model may write 9^9^9^9: without a limit that would be worked out. The limit is an alarm signal, which
    # only the main thread gets.
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would tell of every answer it gave up
    limit = VERIFY_SECONDS if threading.current_thread() is threading.main_thread() else None

    def same(gold: str, found: str) -> bool:
        wanted, read = parse(gold, parsing_timeout=limit), parse(found, parsing_timeout=limit)
        return bool(verify(wanted, read, timeout_seconds=limit))

    gold = as_mathematics(reference)
    bare = without_percent(gold), without_percent(completion)
    return same(gold, completion) or (bare != (gold, completion) and same(*bare))
