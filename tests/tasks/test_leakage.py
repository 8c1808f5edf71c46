"""Test questions in training sets: found in other spelling and templates, counted, and left out on wish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import byte_tokenizer

from neuroada_cli.data.sources import Rows, load_rows
from neuroada_cli.errors import DataError
from neuroada_cli.hub.reader import Reader
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks.leakage import (
    leaked,
    normalise,
    questions,
    questions_of,
    questions_of_tests,
    teaching,
)
from neuroada_cli.tasks.registry import TASKS, expand, get_task
from neuroada_cli.tasks.training_set import training_set
from neuroada_cli.training.rows import prepare


@pytest.mark.parametrize(
    "other",
    ["Sam had 3 dogs .  How many?", "SAM HAD 3 DOGS. HOW MANY", " sam had 3-dogs,\nhow many?! "],
)
def test_case_punctuation_and_spaces_do_not_matter(other: str) -> None:
    assert normalise(other) == normalise("Sam had 3 dogs. How many?") == "samhad3dogshowmany"


@pytest.mark.parametrize("other", ["Sam had 4 dogs. How many?", "Sam had dogs. How many?", ""])
def test_other_words_and_numbers_do(other: str) -> None:
    assert normalise(other) != normalise("Sam had 3 dogs. How many?")


def test_letters_of_any_alphabet_are_kept() -> None:
    assert normalise("Wie groß? 多少?") == "wiegroß多少"


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "How many?", "input": "", "output": "No.", "answer": "4"}, "howmany"),
        ({"instruction": "Sum up.", "input": "A text.", "output": "T."}, "sumupatext"),
        ({"question": "How many?", "answer": "#### 4"}, "howmany"),
        ({"question": "Who?", "sentence": "He.", "label": 0}, "whohe"),
        ({"premise": "p", "hypothesis": "h", "label": 2}, "ph"),
        ({"message": "By 4 May", "date": "2020-05-04"}, "by4may"),
        ({"prompt": "2+2=", "completion": "4"}, "22"),
        (
            {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi!"}]},
            "hi",
        ),
        ({"messages": 7, "prompt": "a"}, "a"),
        ({"instruction": None, "answer": "4"}, ""),
        ({}, ""),
    ],
)
def test_what_a_row_asks(row: dict[str, Any], question: str) -> None:
    assert questions_of(row) == [question]


def said(*turns: str, system: str = "") -> dict[str, Any]:
    """Turns of the user and the assistant in turn."""
    opening = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return {"messages": opening + [{"role": roles[n % 2], "content": t} for n, t in enumerate(turns)]}


def test_a_conversation_asks_each_of_its_turns_and_its_system_text_nothing() -> None:
    talk = said("How many?", "4", "And why?", "So.")
    assert questions_of(talk) == ["howmany4andwhy", "howmany", "howmany", "andwhy"]
    assert questions_of(said("How many?", "4", "And why?", "So.", system="Be brief.")) == questions_of(talk)
    with_history = {"history": [["How many?", "4"]], "instruction": "And why?", "output": "So."}
    assert questions_of(with_history) == questions_of(talk)
    shared = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "4"}]
    assert questions_of({"conversations": shared}) == ["howmany"]
    parts = [{"type": "image"}, {"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]
    assert questions_of({"messages": [{"role": "user", "content": parts}, *talk["messages"][1:2]]}) == [
        "howmany"
    ]


ASKS = "How many eggs?"
TAUGHT = {
    "plain": ({"instruction": ASKS, "output": "4"}, {}),
    "own columns": ({"frage": ASKS, "antwort": "4"}, {"instruction": "frage", "output": "antwort"}),
    "chat": (said(ASKS, "4"), {}),
    "system": (said(ASKS, "4", system="You are a tutor."), {}),
    "first turn": (said(ASKS, "4", "Thanks!", "Welcome."), {}),
    "later turn": (said("Hi", "Hi!", ASKS, "4"), {}),
    "history": ({"history": [[ASKS, "4"]], "instruction": "Thanks!", "output": "Welcome."}, {}),
}


@pytest.mark.parametrize("how", TAUGHT)
def test_however_a_question_was_taught_it_is_found_and_left_out(how: str) -> None:
    row, columns = TAUGHT[how]
    other = json.loads(json.dumps(row).replace(ASKS, "How many hens?"))
    tests = rows({"question": ASKS, "answer": "4"}, {"question": "Thanks?!", "answer": "."})
    assert 0 in leaked(tests, questions(rows(other, row), columns))
    assert 0 not in leaked(tests, questions(rows(other), columns))
    assert teaching(rows(other, row), {normalise(ASKS)}, columns) == [1]
    assert teaching(rows(row, other), {normalise(ASKS)}, columns, 0) == []


def test_a_turn_by_itself_is_no_test_question() -> None:
    """Whoever is asked to go on was not asked what came before."""
    trained = questions(rows(said("Count from 1", "1 2", "Go on.", "3")))
    assert leaked(rows(said("Count from 7", "7 8", "Go on.", "9")), trained) == []
    assert leaked(rows(said("Count from 1", "1 2", "Go on.", "3")), trained) == [0]
    pairs = questions(rows({"text": "A man eats", "pair": "He dances", "label": 1}))
    assert leaked(rows({"text": "A man eats", "pair": "He sings", "label": 0}), pairs) == []


def test_rows_of_which_nothing_is_known_are_not_taken_for_new_ones() -> None:
    strange = rows({"frage": ASKS, "antwort": "4"})
    for ask in (lambda: questions(strange), lambda: teaching(strange, {"x"})):
        with pytest.raises(DataError, match=r"in no field that is known \(frage, antwort\)"):
            ask()
    reviews = rows({"review": "Fine.", "stars": 2})
    assert questions(reviews, {"text": "review", "label": "stars"}) == {"fine"}


def rows(*given: dict[str, Any]) -> Rows:
    return Rows(list(given), "rows of a test", "")


def test_rows_are_found_across_families_and_empty_ones_never() -> None:
    trained = questions(
        rows({"instruction": "How many?", "output": "4"}, {"instruction": "?!", "output": "4"})
    )
    tested = rows({"question": "Why?"}, {"question": "How  many ?"}, {"question": "..."}, {})
    assert leaked(tested, trained) == [1]


def test_the_same_words_about_another_picture_ask_something_else() -> None:
    trained = questions(rows({"question": "What?", "image": b"a"}, {"question": "Who?", "image": None}))
    about = ({"question": "What?", "image": picture} for picture in (b"b", {"bytes": b"a"}, None, 7))
    assert leaked(rows(*about, {"question": "Who?"}), trained) == [1, 4]


# ---------------------------------------------------------------------------------------------------
# What is learnt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 training rows; the test sets ask the first five, the seventh and the last of them."""
    asked = {
        "mine/train": range(20),
        "boolq/test": [0, 1, 2, 3, 4, 30],
        "piqa/test": [6, 19],
    }
    for name, numbers in asked.items():
        rows = [{"instruction": f"Is {n} odd?", "answer": "true"} for n in numbers]
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def section(folder: Path, **settings: Any) -> DataSection:
    return DataSection(**{"task": "commonsense", "train": "mine", "data_dir": str(folder)} | settings)


def test_leaked_rows_are_left_out_on_wish_only(folder: Path) -> None:
    scored = expand(["boolq", "piqa"])
    found = training_set(section(folder), TASKS["commonsense"], 42, scored)
    assert ([*found.learnt], found.dropped) == (list(range(20)), [])
    found = training_set(section(folder, drop_leaked=True), TASKS["commonsense"], 42, scored)
    assert found.dropped == [0, 1, 2, 3, 4, 6, 19]
    assert found.learnt == [5, *range(7, 19)]
    found = training_set(section(folder, drop_leaked=True), TASKS["commonsense"], 42, scored[:1])
    assert found.dropped == [0, 1, 2, 3, 4]


def test_held_out_rows_stay_and_a_limit_counts_what_is_left(folder: Path) -> None:
    settings = section(folder, drop_leaked=True, validation_rows=4, limit=3)
    found = training_set(settings, TASKS["commonsense"], 42, expand(["boolq", "piqa"]))
    assert found.held_out == [16, 17, 18, 19]
    assert len(found.learnt) == 3
    assert set(found.learnt) <= {5, *range(7, 16)}


def test_nothing_left_to_learn_is_refused(folder: Path) -> None:
    settings = section(folder, train="boolq:test", drop_leaked=True)
    with pytest.raises(DataError, match="all 6 rows are test questions"):
        training_set(settings, TASKS["commonsense"], 42, expand(["boolq"]))


def test_training_learns_what_is_left_and_says_so(folder: Path) -> None:
    scored = expand(["boolq", "piqa"])
    settings = section(folder, drop_leaked=True)
    found = prepare(settings, TASKS["commonsense"], Reader(byte_tokenizer()), 42, scored)
    assert [row.row for row in found.data.train] == [5, *range(7, 19)]
    assert found.dropped == 7
    other = prepare(settings, TASKS["commonsense"], Reader(byte_tokenizer()), 42, scored[:1])
    assert other.hashes != found.hashes, "a run does not go on with other rows left out"
    assert other.hashes["train"] == found.hashes["train"]


def test_a_test_set_that_is_not_here_stops_a_run_that_needs_it(folder: Path) -> None:
    (folder / "piqa/test.jsonl").unlink()
    with pytest.raises(DataError, match="piqa"):
        training_set(section(folder, drop_leaked=True), TASKS["commonsense"], 42, expand(["piqa"]))


# ---------------------------------------------------------------------------------------------------
# The published sets

# share of test rows in percent whose question is in the training set
PUBLISHED = {
    "math_10k": {
        "MultiArith": 95, "SingleEq": 88, "AddSub": 84, "mawps": 71, "gsm8k": 0, "SVAMP": 0, "AQuA": 0,
    },
    "commonsense_15k": {"boolq": 0, "piqa": 0, "winogrande": 0, "ARC-Challenge": 0, "openbookqa": 0},
}  # fmt: skip


@pytest.mark.parametrize("trained", PUBLISHED)
def test_the_published_shares(shared: Path, trained: str) -> None:
    seen = questions(load_rows(trained, "train", shared / "data"))
    shares = {}
    for name in PUBLISHED[trained]:
        tested = load_rows(name, "test", shared / "data")
        shares[name] = round(100 * len(leaked(tested, seen)) / len(tested))
    assert shares == PUBLISHED[trained]


def test_commonsense_15k_asks_two_rows_of_arc_easy(shared: Path) -> None:
    seen = questions(load_rows("commonsense_15k", "train", shared / "data"))
    assert len(leaked(load_rows("ARC-Easy", "test", shared / "data"), seen)) == 2


def test_math_10k_without_its_test_questions(shared: Path) -> None:
    scored = expand(["math"])
    settings = DataSection(task="math", train="math_10k", drop_leaked=True, data_dir=str(shared / "data"))
    found = training_set(settings, get_task("math"), 42, scored)
    assert len(found.learnt) + len(found.dropped) == 9919
    tested = questions_of_tests(scored, str(shared / "data"))
    assert not teaching(found.rows.subset(found.learnt), tested)
    published = questions(load_rows("math_10k:train_no_test_overlap", "train", shared / "data"))
    ours = questions(found.rows.subset(found.learnt))
    assert ours < published, "spaces before punctuation hid a few from the published list"
