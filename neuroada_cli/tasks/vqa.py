"""VQA accuracy: how an answer about a picture is scored where ten people answered, too.

    accuracy = mean over the people of min(others who gave the answer / 3, 1)

So an answer counts fully that three of any nine people gave. Answers are normalised before they are compared,
on both sides: lower case, number words as digits, no articles, no punctuation, and contractions with their
apostrophe. (Antol et al., "VQA: Visual Question Answering", ICCV 2015, section 3, and its evaluation page;
TextVQA scores by the same rule.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from neuroada_cli.tasks.task import Scoring

ENOUGH = 3
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")  # what the published evaluation really takes out: not ".5", and not "v.2"
DIGIT_COMMA = re.compile(r"\d,\d")
# Contractions, which people write without their apostrophe.
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've
mustn't must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""
CONTRACTIONS = {word.replace("'", ""): word for word in CONTRACTED.split()}


def normalised(answer: str) -> str:
    """An answer as answers are compared."""
    words = [NUMBERS.get(word, word) for word in _without_punctuation(answer.strip().lower()).split()]
    kept = [word for word in words if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word.replace("'", ""), word) for word in kept)


def _without_punctuation(text: str) -> str:
    """A mark beside a space goes, any other makes room for one; a comma within a number goes, and with it
    every mark of that answer.
    """
    numbers = DIGIT_COMMA.search(text) is not None
    cleared = text
    for mark in PUNCTUATION:
        goes = numbers or f"{mark} " in text or f" {mark}" in text
        cleared = cleared.replace(mark, "" if goes else " ")
    return PERIOD.sub("", cleared)


def accuracy(answer: str, people: Sequence[str]) -> float:
    """VQA accuracy of an answer, 0 to 1; where one person answered: 1 for the same answer."""
    given, wanted = normalised(answer), [normalised(each) for each in people]
    if not given:
        return 0.0
    if len(wanted) < 2:
        return float([given] == wanted)
    same = wanted.count(given)
    others = [same - (each == given) for each in wanted]
    return sum(min(1.0, count / ENOUGH) for count in others) / len(others)


def reference_of(people: Sequence[str]) -> str:
    """All people's answers as one text, for the files of an evaluation; of one its own text, if no list."""
    alone = len(people) == 1 and not people[0].startswith("[")
    return people[0] if alone else json.dumps(list(people), ensure_ascii=False)


def people_of(reference: str) -> list[str]:
    """The answers in such a text."""
    if reference.startswith("["):
        try:
            found = json.loads(reference)
        except ValueError:
            return [reference]
        if isinstance(found, list) and all(isinstance(each, str) for each in found):
            return found
    return [reference]


def most_common(people: Sequence[str]) -> str:
    """The answer that most people gave: the one that is learnt; of several the first."""
    return max(people, key=list(people).count)


def _written(prompt: str, completion: str) -> str:
    return completion.strip()


def _credit(found: str, reference: str) -> float:
    """What is written below the answer does not count: as many lines are read as the longest answer has."""
    people = people_of(reference)
    most = max(len(each.strip().split("\n")) for each in people)
    return accuracy("\n".join(found.split("\n")[:most]), people)


def scoring(max_new_tokens: int = 16) -> Scoring:
    """VQA accuracy of what was written, its first line where no answer has more."""
    return Scoring(
        _written,
        lambda found, reference: _credit(found, reference) == 1.0,
        max_new_tokens,
        credit=_credit,
    )
