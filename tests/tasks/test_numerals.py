"""Decorations around a number: a right answer stays right in every one of them, a wrong one wrong."""

from __future__ import annotations

import itertools

import pytest

from neuroada_cli.tasks import answers
from neuroada_cli.tasks.numerals import as_mathematics

needs_math_verify = pytest.mark.skipif(not answers.can_verify(), reason="needs math-verify (extra strict)")

DECORATIONS = [
    "{}", "{}.", " {} ", "({})", '"{}"', "[{}]",
    "**{}**", "*{}*", "__{}__", "_{}_", "`{}`", "***{}***",
    "**{}** apples", "*{}* apples", "`{}`.",
    "<answer>{}</answer>", "<b>{}</b>", "<answer> {} </answer>",
    r"\text{{{}}}", r"\textbf{{{}}}", r"\mathrm{{{}}}", r"\text{{ {} }}", r"$\text{{{}}}$",
    r"\boxed{{{}}}", r"\boxed{{\text{{{}}}}}", r"$\boxed{{{}}}$", r"\({}\)", r"\[{}\]", "${}$",
    "\N{ALMOST EQUAL TO}{}", "\N{ALMOST EQUAL TO} {}", "~{}", "about ~{}", "x\N{ALMOST EQUAL TO}{}",
    "=>{}", "->{}", "=> {}", "\N{RIGHTWARDS ARROW}{}", "x={}", "x = {}",
    "####{}", "#### {}", "####**{}**",
    "<<1+1=2>>{}", "1+1=<<1+1=2>>2\n#### {}",
]  # fmt: skip
STATEMENTS = [
    "{}", "It is {}", "so {}", "Answer:{}", "Answer: {}", "**Answer:** {}", "**Answer:**{}", "Answer:**{}**",
    "The answer is {}", "The answer is:{}", "The answer is: {}.", "The final answer is {}.",
    "The final answer is:{}", "the answer = {}", "7 and 9: {}", "To find the answer, take 7 from 9. So {}",
    "He answered 7 of 9. So {}", "{}\n\nQuestion: And 7?\nAnswer: 7",
]  # fmt: skip
CURRENCIES = [
    "${}", r"\${}", "\N{EURO SIGN}{}", "\N{POUND SIGN}{}", "US${}", r"US\${}", "USD{}", "USD {}", "Rs.{}",
    "Rs. {}", "{} dollars", "{}\N{EURO SIGN}", "{} USD", "{}kg", "{} mph", "{}%", "{} %", "{} percent",
    r"{}\%", r"\text{{{} dollars}}", r"{} \text{{ dollars}}",
]  # fmt: skip


def verdicts(text: str, value: str, wrong: tuple[str, ...]) -> list[bool]:
    return [answers.strict_number(text, reference) for reference in (value, *wrong)]


@needs_math_verify
@pytest.mark.parametrize("decoration", DECORATIONS)
def test_a_decoration_changes_no_verdict(decoration: str) -> None:
    wrong = ("41", "4", "0", "3", "1", "250", "5", "2", "7")
    for value in ("40", "-3", "1,250", "2.5"):
        if decoration.startswith("\\(") and value.startswith("-"):
            continue  # a sign behind a bracket is math-verify's own to read
        text = decoration.format(value)
        assert verdicts(text, value, wrong) == [True, *[False] * len(wrong)], as_mathematics(text)


@needs_math_verify
@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_decoration_within_a_statement_changes_no_verdict(statement: str) -> None:
    for decoration in (each for each in DECORATIONS if not each.startswith(("<<", "1+1", "####"))):
        text = statement.format(decoration.format("40"))
        assert verdicts(text, "40", ("41", "4", "7")) == [True, *[False] * 3], text


@needs_math_verify
@pytest.mark.parametrize("currency", CURRENCIES)
@pytest.mark.parametrize("statement", ["{}", "He earns {} every day.", "Answer: {}", "**Answer:** {}"])
def test_a_unit_changes_no_verdict(statement: str, currency: str) -> None:
    text = statement.format(currency.format("18"))
    assert verdicts(text, "18", ("19", "1", "8", "180")) == [True, *[False] * 4], as_mathematics(text)
    assert answers.strict_number("18", currency.format("18")), "on the side of the reference"
    assert not answers.strict_number("19", currency.format("18"))


@needs_math_verify
@pytest.mark.parametrize(
    ("written", "value", "wrong"),
    [
        # the last side of an equation is what the answer is; a reason, or a step before, is not
        ("The answer is 20-8=12.", "12", ("20", "8", "13")),
        ("The answer is 20-8=13.", "13", ("12", "20")),
        ("The answer is 20 - 8 = 13.", "13", ("12", "20")),
        ("The answer is $20-$8=$12", "12", ("20", "8")),
        ("The answer is $20-8=12$.", "12", ("20", "8", "13")),
        (r"The answer is \$20-\$8=\$12.", "12", ("20", "8")),
        ("Answer: 2*3=6=5+1", "6", ("2", "5", "1")),
        ("The answer is:\n30 - 21 = 9", "9", ("30", "21")),
        ("The answer is (20-8)/2=6", "6", ("20", "12")),
        ("The answer is 13, since 20-8=12.", "13", ("12", "20")),
        ("First 3*4=12. The answer is 15.", "15", ("12", "3")),
        ("3*4=12 and then 12+1=13", "13", ("12",)),
        # words for a sign
        ("negative 5", "-5", ("5",)),
        ("The answer is negative 5.", "-5", ("5",)),
        ("Negative $5", "-5", ("5",)),
        ("non-negative 5", "5", ("-5",)),
        ("minus 5", "-5", ("5",)),
        ("It falls to minus 5 degrees", "-5", ("5",)),
        ("The answer is **minus 5**", "-5", ("5",)),
        ("10 minus 5", "5", ("-5",)),
        ("ten minus 5", "5", ("-5",)),
        # what only looks alike
        ("1:30", "1", ("130", "30")),
        ("10~15", "10", ("1015", "15")),
        ("The answer to problem #3 is 40", "40", ("3",)),
        ("2 ** 3", "8", ("2", "3")),
        (r"10 \$500 notes", "500", ("10500",)),
        ("10 USD500", "500", ("10500",)),
        # points and commas: a comma in front of three digits parts thousands, any other is a decimal one
        ("1,000", "1000", ("1",)),
        ("1.000", "1", ("1000",)),
        ("1,5", "1.5", ("15",)),
        ("1.234,56", "1234.56", ("1.234", "56")),
        ("1.234.567", "1234567", ("1.234", "567")),
        # a share is right by its number, or by its hundredth part
        ("It is 12%.", "12.0", ("1200", "13")),
        ("It is 12%.", "0.12", ("0.0012",)),
        ("It is 12 percent", "12.0", ("13",)),
        ("It is 0.5", "50%", ("5%", "0.05%")),
        ("It is 0.5%", "0.5", ("50%", "50")),
        # "answer" as a verb or in passing states nothing
        ("To find the answer, subtract 45 from 47: 2 are left", "2", ("45", "47")),
        ("He answered 20 - 11 = 9 problems", "9", ("20", "11")),
        ("4 or minus 5", "?", ("4", "5", "-5")),
        ("4 or negative 5", "?", ("4", "5", "-5")),
        (r"\text{4} or \text{5}", "?", ("4", "5")),
        ("2+2=<<2+2=4>>5", "5", ("4",)),
    ],
)  # fmt: skip
def test_what_a_text_says(written: str, value: str, wrong: tuple[str, ...]) -> None:
    assert verdicts(written, value, wrong) == [value != "?", *[False] * len(wrong)], as_mathematics(written)


@needs_math_verify
def test_a_reference_is_read_as_a_completion_is() -> None:
    for one, other in itertools.product(
        ["40", r"\$40", r"\text{40}", "*40*", "~40", "x=40", "4e1"], repeat=2
    ):
        assert answers.strict_number(one, other), (one, other)
        assert not answers.strict_number(one.replace("4", "5"), other), (one, other)


def test_words_without_numbers_stay_as_they_are() -> None:
    for text in ("", "nothing: at all", r"\text{words} and *more*", "a -> b", "minus one", "#### none"):
        assert as_mathematics(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "answer " + "1+" * 5000,
        "answer " + "1=1=" * 3000,
        "#" * 9000,
        "\n" * 9000,
        "1.234" * 3000,
        "answer " * 4000,
    ],
)
def test_a_model_that_repeats_itself_is_rewritten(text: str) -> None:
    """Would take minutes with patterns that try every way to part a run of signs."""
    assert as_mathematics(text) is not None
