"""Numbers as models write them, rewritten as mathematics writes them, before a strict scorer reads them.

math-verify reads plain numbers, fractions and LaTeX. Of what stands below it reads another number, or none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

# Behind what would make a sign an operation: "10-3", "10 - 3".
ALONE = r"(?<![\w.)\]}%])(?<![\d)\]}$%]\s)"
PLAIN = r"\d+(?:,\d{3})*(?:\.\d+)?"
BETWEEN = re.compile(r"(?<=\d)['\N{RIGHT SINGLE QUOTATION MARK}_\xa0\u2009\u202f](?=\d{3}(?!\d))")
CURRENCY = re.compile(  # "$" is the one sign that is read wherever it stands
    r"\b(?:(?:US|CA|AU|NZ|HK|SG|A|C|R)\\?\$|(?:USD|EUR|GBP|CAD|AUD|INR|Rs\.?)\s?)(?=\s?[-+]?\.?\d)"
)
# Dropped rather than bared: in pairs, or within mathematics, dollar signs are LaTeX's. Not between numbers,
# which would become one: "10 \$500".
ESCAPED = re.compile(r"(?<!\d)(?<!\d\s)\\\$\s?(?=[-+]?\.?\d)")
ESCAPED_BETWEEN = re.compile(r"\\\$(?=\s?[-+]?\.?\d)")
NEGATIVE = re.compile(r"(?<![-\w])negative\s+(?=\\?[$€£]?\.?\d)", re.IGNORECASE)
# "10 minus 5" is none: only in front of all else, or behind what a value follows.
MINUS_WORD = re.compile(
    r"(^[^\w\n]{0,8}|[=:]\W{0,8}|\b(?:is|are|was|be|equals?|equal to|to|gives?|gets?|or)\b\W{1,4})"
    r"minus\s+(?=\\?[$€£]?\.?\d)",
    re.IGNORECASE | re.MULTILINE,
)
MINUS = re.compile(r"\N{MINUS SIGN}|" + ALONE + r"[\N{EN DASH}\N{FIGURE DASH}](?=[$€£]?\.?\d)")
SIGN_FIRST = re.compile(ALONE + r"([-+])([$€£])(?=\.?\d)")
PLUS = re.compile(rf"(?:{ALONE}(?<!\$)|(?<=\$))\+(?=\$?\.?\d)")
POINT = re.compile(r"(?<![\w.,)])(-?)\.(?=\d)")
POWER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,2})(?!\w|\.\d)")
POWER_OF_TEN = re.compile(
    r"(?<![\w.,])(\d+(?:\.\d+)?)\s*(?:×|·|x|\*|\\times|\\cdot)\s*10\s*"
    r"(?:(?:\^|\*\*)\s*\{?\s*([+-]?\d{1,2})\s*\}?|([⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,2}))(?![\w^])"
)
FRACTION = re.compile(r"(?<![\w.,/])(?:(\d+)\s?)?([\xbc-\xbe\u2150-\u215e])(?!\w)")
MIXED = re.compile(r"(?<![\w.,/])(\d+)\s+(\d+)/(\d+)(?![\w/])")
LARGE = re.compile(rf"(?<![\w.,])({PLAIN})\s(thousand|million|billion)\b")
QUOTED = re.compile(r"(?<![\w)\]}^_\\])[(\[\"'“‘]([-+]?[$€£]?" + PLAIN + r"\s?%?)\.?[)\]\"'”’](?!\s*[\w(\[])")
CALCULATED = re.compile(r"<<[^<>\n]*>>")  # GSM8K's notes for a calculator
TAG = re.compile(r"</?[A-Za-z]{1,12}>(?=\s*[-+$€£]*\.?\d)|(?<=[\d%.])</?[A-Za-z]{1,12}>")
SIGNED = r"[-+]?[$€£]?[-+]?(?:" + PLAIN + r"|\d+(?:\.\d+)?|\.\d+)"
IN_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|emph)\s*"
    rf"\{{\s*({SIGNED}(?:\s?%|\s?[^\W\d_]{{1,20}})?)\.?\s*\}}"
)
CODE = re.compile(rf"(?<![\w`)\]}}])`({SIGNED}\s?%?\.?)`(?![\w`]|\s*[\d(])")
EMPHASIS = re.compile(rf"(?<![\w*)\]}}])(\*{{1,3}}|_{{1,3}})({SIGNED}\s?%?\.?)\1(?![\w*]|\s*[\d(])")
# What a number touches: "Answer:40", "####40", "≈15", "->3". Not in "1:30" or "10~15".
TOUCHING = re.compile(r"((?<!\d):[*_]*|(?<!#)#{2,9}|(?<!\d)[≈~≃≅]|[→⇒]|[-=]>)(?=[-+$€£]*\.?\d)")
# In 1.234,56 and 1.234.567 the points cannot be decimal ones.
POINTS = re.compile(r"(?<![\w.,])\d{1,3}(?:(?:\.\d{3})+,\d{1,2}|(?:\.\d{3}){2,})(?![\w]|[.,]\d)")
# Right behind "the answer is" an equation says its last side. A reason behind a number is none such.
TERM = r"[-+(]*[$€£]?\d+(?:[.,]\d+)*[)%]*"
SIDE = rf"{TERM}(?:[ \t]*(?:[-+*/^x×÷·]|\\times|\\div|\\cdot)[ \t]*{TERM})*"
EQUATION = re.compile(
    rf"(\banswer(?:[ \t]+is)?\b[\s:*]*)(?:\$|\\\()?(?:{SIDE}[ \t]*=[ \t]*)+(?=[-+]?[$€£]?[-+]?\.?\d)",
    re.IGNORECASE,
)
# math-verify takes the first number behind any "answer" for one: "to find the answer, take 45 from 47".
SAID = r"[^.\n:=,;]{0,50}?[:=]|[^.\n:=]{0,50}?\b(?:is|was|be|equals)\b|[\s*_(]{0,6}[-+]?[$€£\\]?\.?\d"
MENTIONED = re.compile(rf"\banswer(?:(?:s|ed|ing)\b|\b(?!{SAID}))", re.IGNORECASE)
PERCENT = re.compile(r"(?<=\d)\s?(?:\\?%|per ?cent\b)")
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def as_mathematics(text: str) -> str:
    r"""A text with its numbers written plainly: 4 for +4, 1500 for 1.5e3 and 1.5 × 10³, 1234 for 1'234, -0.5
    for −.5, 7/2 for 3½, 5 for (5) and `\text{5}`, -5 for negative 5; 12 for 20-8=12 behind "the answer is".
    """
    for pattern, instead in _STEPS:
        text = pattern.sub(instead, text)
    return text


def without_percent(text: str) -> str:
    """A text with 12 for 12%."""
    return PERCENT.sub("", text)


def _digit(found: re.Match[str]) -> str:
    return str(unicodedata.decimal(found[0]))


def _power(found: re.Match[str]) -> str:
    exponent = found[2] or unicodedata.normalize("NFKC", found[3]).replace("\N{MINUS SIGN}", "-")
    return f"{Decimal(f'{found[1]}e{exponent}'):f}"


def _fraction(found: re.Match[str]) -> str:
    part = Fraction(unicodedata.numeric(found[2])).limit_denominator(10)
    return _ratio(int(found[1] or 0) + part)


def _mixed(found: re.Match[str]) -> str:
    whole, above, below = (int(part) for part in found.groups())
    return _ratio(whole + Fraction(above, below)) if 0 < above < below else found[0]


def _ratio(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


def _with_a_point(found: re.Match[str]) -> str:
    return found[0].replace(".", "").replace(",", ".")


def _scaled(found: re.Match[str]) -> str:
    return f"{Decimal(found[1].replace(',', '')) * SCALES[found[2]]:f}"


_STEPS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?![0-9])\d"), _digit),
    (CALCULATED, ""),
    (TAG, " "),
    (MINUS, "-"),
    (CURRENCY, "$"),
    (BETWEEN, ""),
    (POINTS, _with_a_point),
    (NEGATIVE, "-"),
    (MINUS_WORD, r"\1-"),
    (ESCAPED, ""),
    (ESCAPED_BETWEEN, "$"),
    (IN_TEXT, r"\1"),
    (CODE, r"\1"),
    (EMPHASIS, r"\2"),
    (SIGN_FIRST, r"\2\1"),
    (PLUS, ""),
    (POINT, r"\g<1>0."),
    (POWER, lambda found: f"{Decimal(found[0]):f}"),
    (POWER_OF_TEN, _power),
    (FRACTION, _fraction),
    (MIXED, _mixed),
    (LARGE, _scaled),
    (QUOTED, r"\1"),
    (TOUCHING, r"\1 "),
    (EQUATION, r"\1"),
    (MENTIONED, "reply"),
]
