"""VQA accuracy against its definition, and what counts as the same answer."""

from __future__ import annotations

import itertools
import random

import pytest

from neuroada_cli.tasks.vqa import accuracy, most_common, normalised, people_of, reference_of, scoring


def by_definition(answer: str, people: list[str]) -> float:
    """The mean over all sets of nine of the ten people of min(how many of them gave the answer / 3, 1)."""
    sets = list(itertools.combinations(people, len(people) - 1))
    return sum(min(1.0, some.count(answer) / 3) for some in sets) / len(sets)


def test_it_is_the_mean_over_all_sets_of_nine_people() -> None:
    chance = random.Random(0)
    for _ in range(200):
        people = [chance.choice(["red", "blue", "green"]) for _ in range(10)]
        for answer in ("red", "blue", "yellow"):
            assert accuracy(answer, people) == pytest.approx(by_definition(answer, people))
    assert accuracy("red", ["red"] * 2 + ["blue"] * 8) == pytest.approx(0.6)
    assert accuracy("red", ["red"] * 4 + ["blue"] * 6) == 1.0


def test_one_person_is_right() -> None:
    assert accuracy("A red square.", ["red square"]) == 1.0
    assert accuracy("blue square", ["red square"]) == 0.0
    assert accuracy("", ["the"]) == 0.0, "nothing is no answer, whatever is left of the reference"
    assert accuracy("", ["", *["x"] * 9]) == 0.0


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("Two.", "2"),
        ("the  DOG", "dog"),
        ("An apple, a pear", "apple pear"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("$.50", "$.50"),
        ("dont know", "don't know"),
        ("Don't know", "don't know"),
        ("ice-cream", "ice cream"),
        ("yes!", "yes"),
        ("10:30", "10:30"),
        ("men's", "men's"),
        ("none", "0"),
        ("u.s.a.", "usa"),
    ],
)
def test_answers_are_normalised(answer: str, same: str) -> None:
    assert normalised(answer) == same
    assert normalised(normalised(answer)) == normalised(answer)


def test_the_answers_of_many_are_kept_as_one_text() -> None:
    for people in (["red"], ["red", "dark red"], ["[a]"], ['["a"', "b"]):
        assert people_of(reference_of(people)) == people
    assert people_of("[not json") == ["[not json"]
    assert most_common(["a", "b", "b"]) == "b"
    assert most_common(["a", "b"]) == "a"


@pytest.mark.parametrize(
    ("written", "answer", "right"),
    [
        (" two\nlines", "two\nlines", True),
        ("two\nlines\nand more", "two\nlines", True),
        ("two", "two\nlines", False),
        ("red\nQuestion: what else?", "red", True),
        ("red\nblue", "red", True),
        ("\n\nred", "red", True),
        ("blue\nred", "red", False),
        ("[]", "[]", False),
        ('["a cat"]', '["a cat"]', True),
    ],
)
def test_an_answer_is_read_as_far_as_what_was_asked_for_has_lines(
    written: str, answer: str, right: bool
) -> None:
    rule = scoring()
    assert rule.correct(rule.extract("", written), reference_of([answer])) is right
