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
NEXT_QUESTION = re.compile(  # that the model goes on to ask itself
    r"\n\s*(?:#+\s*|\*\*)?(?:question|instruction|problem|exercise|user|human|q)\b\s*\d{0,3}\s*:",
    re.IGNORECASE,
)
BETWEEN = re.compile(r"(?<=\d)['\N{RIGHT SINGLE QUOTATION MARK}_\xa0\u2009\u202f](?=\d{3}(?!\d))")
COUNTRY = re.compile(r"\b(?:US|CA|AU|NZ|HK|SG|A|C|R)\$(?=\s?[-+.]?\d)")
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
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def as_mathematics(completion: str) -> str:
    """A completion up to the next question that it makes up, its numbers written plainly: 4 for +4, 1500 for
    1.5e3 and 1.5 × 10³, 1234 for 1'234, -0.5 for −.5, 7/2 for 3½, 5 for (5).
    """
    text = NEXT_QUESTION.split(completion, maxsplit=1)[0] or completion
    for pattern, instead in _STEPS:
        text = pattern.sub(instead, text)
    return text


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


def _scaled(found: re.Match[str]) -> str:
    return f"{Decimal(found[1].replace(',', '')) * SCALES[found[2]]:f}"


_STEPS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?![0-9])\d"), _digit),
    (MINUS, "-"),
    (COUNTRY, "$"),
    (BETWEEN, ""),
    (SIGN_FIRST, r"\2\1"),
    (PLUS, ""),
    (POINT, r"\g<1>0."),
    (POWER, lambda found: f"{Decimal(found[0]):f}"),
    (POWER_OF_TEN, _power),
    (FRACTION, _fraction),
    (MIXED, _mixed),
    (LARGE, _scaled),
    (QUOTED, r"\1"),
]
