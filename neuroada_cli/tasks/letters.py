"""The option of a multiple-choice question that a text gives as its answer, as models write it."""

from __future__ import annotations

import re

QUOTES = "\"'`\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}“”"
# Around a letter: brackets, quotes, Markdown's and LaTeX's marks. Then a capital, but not the article or a
# part of a word or abbreviation; or a small one in front of what ends it.
# Bounded, so that a model that writes nothing but spaces is read in no time.
MARKS = rf"(?:\\(?:boxed|text|mathbf|textbf|mathrm)?|[\s:=({{\[$*_{QUOTES}]){{0,24}}"
CLOSED = rf"[\s)}}\]$*_{QUOTES}]{{0,24}}"
ARTICLE = r"A[ \t]+(?!(?:is|as|and|or|but|so|because|since|with|which|where|for)\b)[a-z]"
CAPITAL = rf"(?!{ARTICLE})[A-E](?![^\W_]|_+[^\W_]|-|['’][^\W_]|\.[A-Za-z])"
SMALL = rf"[a-e](?=\s*(?:[)\]}}$*_\\{QUOTES}](?!\w)|[.,;](?!\w)|$))"
LETTER = rf"(?:{CAPITAL}|{SMALL})"
NAMED = r"(?:the\s+)?(?:correct\s+|right\s+)?(?:option|choice|letter)\b"
IS = (
    r"(?:is|was|(?:should|must|will|has\s+to|ought\s+to)\s+be|(?P<would>would\s+be))\b"
    r"(?:\s+(?:therefore|thus|then|hence|clearly)\b)?"
)
NOT = r"(?:\bnot|n['’]t|\bthan|\binstead\s+of)\s+(?:an?\s+|the\s+)?(?:correct\s+|right\s+)?"
GIVEN = re.compile(
    rf"(?i:(?P<no>{NOT})?\b(?:answer|option|choice)(?:\s+(?:choice|option|letter))?"
    rf"(?P<link>(?:\s+to\s+(?:the|this)\s+\w+)?[\s*_]{{0,4}}(?:{IS})?{MARKS})(?:{NAMED}{MARKS})?)(?P<letter>{LETTER})",
    re.MULTILINE,
)
# "answer is C", "answer: C" and "answer", line break, "C" state it; "option C" alone only mentions it.
STATING = re.compile(r"[:=\n]|\b(?:is|was|be)\b", re.IGNORECASE)
# Behind a letter: what takes it back, leaves it open, or puts another beside it.
REFUSED = re.compile(
    rf"{CLOSED}(?:\?|(?:(?:is|was|would\s+be|seems|looks)\s+(?:not|wrong|incorrect|false|too|impossible)"
    r"|isn['’]t|can\s?not|can['’]t|does(?:\s+not|n['’]t))\b)",
    re.IGNORECASE,
)
IF = re.compile(rf"{CLOSED},?\s*(?:if|had|were|unless)\b", re.IGNORECASE)
OTHER = re.compile(rf"{CLOSED}(?:(?i:or|and)\b|[/&]){MARKS}(?i:{NAMED}{MARKS})?{LETTER}", re.MULTILINE)
ALONE = re.compile(rf"{MARKS}([A-E])[\s)}}\]$*_.\\{QUOTES}]*")
LABEL = re.compile(r"(?<!\w)\(?([A-E])(?:\)|\.(?=\s*[$£€]?-?\d))")  # of an option: (C) 15, C) 15, C. 15


def letter_in(text: str) -> str:
    """The letter that is stated as the answer (the last such statement); else the one that is mentioned as an
    option; else the one that stands alone, or begins the text in front of its option's. "" for none: two that
    are mentioned, or a choice between two, are none.
    """
    given = [found for found in GIVEN.finditer(text) if not _is_refused(found, text)]
    stated = [found for found in given if STATING.search(found["link"])]
    if given:
        letters = {found["letter"].upper() for found in stated[-1:] or given}
        undecided = any(OTHER.match(text, found.end()) for found in stated[-1:] or given)
        return "" if undecided or len(letters) > 1 else letters.pop()
    alone = ALONE.fullmatch(text)
    labels = set(LABEL.findall(text)) if LABEL.match(text.lstrip("\n *$")) else set()
    return alone[1] if alone else labels.pop() if len(labels) == 1 else ""


def _is_refused(found: re.Match[str], text: str) -> bool:
    conditional = found["would"] is not None and IF.match(text, found.end()) is not None
    return found["no"] is not None or conditional or REFUSED.match(text, found.end()) is not None
