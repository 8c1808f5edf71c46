"""Statements of an option, and decorations around its letter: the right letter stays right, others wrong."""

from __future__ import annotations

import itertools

import pytest

from neuroada_cli.tasks import answers
from neuroada_cli.tasks.letters import letter_in

DECORATIONS = [
    "{}", "({})", "[{}]", "'{}'", '"{}"', "\N{LEFT SINGLE QUOTATION MARK}{}\N{RIGHT SINGLE QUOTATION MARK}",
    "\N{LEFT DOUBLE QUOTATION MARK}{}\N{RIGHT DOUBLE QUOTATION MARK}",
    "`{}`", "*{}*", "**{}**", "__{}__", "_{}_", "**({})**", "${}$", r"$\text{{{}}}$", r"\boxed{{{}}}",
    r"\boxed{{\text{{({})}}}}", "{})", "{}) 15", "({}) 15",
]  # fmt: skip
STATEMENTS = [
    "The answer is {}", "The answer is {}.", "the answer is: {}", "Answer: {}", "**Answer:** {}", "Answer:{}",
    "The answer is\n\n{}", "Answer\n{}", "The answer = {}", "The correct answer is {}, since 3 * 5 = 15",
    "The answer would be {}", "The answer must be {}.", "The answer should be {}", "The answer was {}",
    "The answer is therefore {}", "The answer is option {}", "The answer is the correct choice {}",
    "The answer to the question is {}", "The correct option is {}", "The choice is: {}", "So it is option {}",
    # what is said beside the statement
    "The answer is {} (not option A).", "The answer is {}, not option A",
    "Option A is wrong. The answer is {}",
    "The answer is {}. Option A would be 3.", "The answer is {} rather than choice A",
    "Is the answer A? No, the answer is {}", "The answer isn't option A. The answer is {}",
    "If it were 3, the answer would be A if at all. The answer is {}",
    "The answer is {}.\nQuestion: foo\nAnswer: A", "The answer is {}.\n\n### Instruction:\nThe answer is A",
    "The answer is {}.\n\n**Problem 2:** The answer is A",
]  # fmt: skip


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_says_its_letter_and_no_other(statement: str) -> None:
    for decoration, letter in itertools.product(DECORATIONS, "BCE"):
        text = statement.format(decoration.format(letter))
        assert [each for each in "ABCDE" if answers.strict_letter(text, each)] == [letter], text


@pytest.mark.parametrize(
    "text",
    [
        # a choice between two
        "The answer is C or D", "The answer is (C) or (D).", "The answer is either C or D", "Answer: C/D",
        "The answer is C and D", "The answer is option C or option D", "C or D", "the answer is (c) or (d)",
        "Option C, or option D",
        # open, or taken back
        "The answer would be C if it were 3", "The answer would be (C), if it rained", "Is the answer C?",
        "The answer is not C", "The answer isn't C", "This is not the answer: C", "not option C",
        "Option C is wrong", "Option (C) is not correct.", "Option C can't be", "The answer could be C",
        # no letter of an option
        "The answer is C's", "The answer is D\N{RIGHT SINGLE QUOTATION MARK}Artagnan", "Answer: A-level",
        "The answer is C_1", "the answer is a number", "The answer is Dave", "the answer is e.g. 4",
        "The answers are many", "",
    ],
)  # fmt: skip
def test_what_states_no_letter(text: str) -> None:
    assert letter_in(text) == ""
    assert not any(answers.strict_letter(text, letter) for letter in "ABCDE")


def test_a_bare_question_is_read_whole() -> None:
    """There is no answer in front of it that it could end."""
    assert answers.strict_letter("\n \nQuestion: none.\nAnswer: C", "C")


@pytest.mark.parametrize(
    "behind",
    [
        "\n\nQuestion: Is it?\nthe correct answer is false",
        "\n### Instruction:\nfalse",
        "\n**Q1:** false",
        "\n",
    ],
)
@pytest.mark.parametrize("said", ["true", "the correct answer is true", "True."])
def test_options_count_up_to_the_next_question(said: str, behind: str) -> None:
    strict = answers.exact_option("true|false")
    assert strict(said + behind, "true")
    assert not strict(said + behind, "false")
    assert not strict(f"{said} or false{behind}", "true")


@pytest.mark.parametrize(
    "text",
    [
        "answer" + " " * 20_000,
        "answer" + "*" * 9000,
        "\n" * 9000,
        "answer is " * 3000,
        "not " * 5000,
        "(" * 9000,
    ],
)
def test_a_model_that_repeats_itself_is_read(text: str) -> None:
    """Would take minutes with patterns that try every way to part a run of signs."""
    assert not answers.strict_letter(text, "A")
