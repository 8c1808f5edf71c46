"""Rows of one's own: formats, columns by other names, and nothing of a row that is lost without a word."""

from __future__ import annotations

from typing import Any

import pytest
from templates_table import chat_tokenizer
from tiny_tokenizer import byte_tokenizer

from neuroada_cli.data.batch import Example
from neuroada_cli.data.sources import Rows
from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks import instruct
from neuroada_cli.tasks.notes import Notes
from neuroada_cli.tasks.registry import TASKS
from neuroada_cli.tasks.task import PROTOCOLS, examples_of

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nHow many?\n\n### Response:\n"
)
TURNS = [
    ("system", "Be brief."), ("user", "Hi?"), ("assistant", "Hi."), ("user", "Why?"), ("assistant", "So."),
]  # fmt: skip


def read(*rows: dict[str, Any], tokenizer: Any = None, **settings: Any) -> tuple[list[Example], list[str]]:
    """(the examples of rows under a data section, what is said of them)."""
    notes, section = Notes(), DataSection(task="instruct", **settings)
    habits = instruct.habits_of(section, PROTOCOLS["reft"], notes)
    task = instruct.shaped(
        TASKS["instruct"], Rows(list(rows), "f.jsonl", ""), habits, tokenizer or byte_tokenizer()
    )
    return examples_of(task, rows, "reft", "f.jsonl", notes=notes), notes.lines()


@pytest.mark.parametrize(
    ("row", "prompt", "target"),
    [
        ({"instruction": "How many?", "input": "", "output": "4"}, ALPACA, "4"),
        ({"prompt": "2+2=", "completion": "4"}, "2+2=", "4"),
        ({"text": "all of it"}, "", "all of it"),
    ],
)
def test_formats_are_recognised(row: dict[str, str], prompt: str, target: str) -> None:
    assert read(row) == ([Example(prompt, target, target, 0)], [])


@pytest.mark.parametrize(
    "row",
    [
        {"question": "How many?", "answer": "4"},
        {"query": "How many?", "response": "4"},
        {"instruction": "How many?", "context": "", "response": "4", "category": "math"},
        {"problem": "How many?", "solution": "4", "level": 1},
        {"input": "How many?", "output": "4"},
        {"instruction": "How many?", "answer": 4},
    ],
)
def test_columns_by_other_names_are_recognised_where_there_is_one_way_to_read_them(
    row: dict[str, Any],
) -> None:
    [example], lines = read(row)
    assert (example.prompt, example.target) == (ALPACA, "4")
    assert lines[0].startswith("columns are read by other names: ")
    assert any("columns that are not used: level" in line for line in lines) == ("level" in row)


def test_dollys_context_is_the_input() -> None:
    [example], _ = read({"instruction": "Sum up.", "context": "A text.", "response": "T."})
    assert "### Instruction:\nSum up.\n\n### Input:\nA text.\n\n### Response:\n" in example.prompt


def test_a_recipe_says_which_column_is_which() -> None:
    columns = {"prompt": "frage", "completion": "antwort"}
    row = {"frage": "2+2=", "antwort": 4, "quelle": "x"}
    found, lines = read(row, columns=columns)
    assert found == [Example("2+2=", "4", "4", 0)]
    assert lines == [
        "completion: numbers, true and false become text: 1 row", "columns that are not used: quelle",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"f\.jsonl, row 1: has no field 'antwort'"):
        read(row, {"frage": "?"}, columns=columns)
    values = {"name": "x", "model": {"path": "m"}, "data": {"task": "instruct", "columns": {"promt": "a"}}}
    with pytest.raises(RecipeError, match="promt is none of our names; did you mean prompt"):
        recipe_from(values)
    other = values | {"data": {"task": "boolq", "columns": {"prompt": "a"}}}
    with pytest.raises(RecipeError, match=r"data\.columns goes with data\.task: instruct"):
        recipe_from(other)


def test_what_stands_in_braces_is_text() -> None:
    [example], _ = read(
        {"instruction": "Replace {input} and {instruction}", "input": "{instruction}", "output": "x"}
    )
    assert (
        "### Instruction:\nReplace {input} and {instruction}\n\n### Input:\n{instruction}\n\n"
        in example.prompt
    )


def test_only_what_is_missing_or_empty_is_no_input() -> None:
    values = [0, 0.0, False, 1, True, "", None, ["red", {"a": "é"}]]
    rows = [{"instruction": "Do.", "input": value, "output": "x"} for value in values]
    found, lines = read(*rows, {"instruction": "Do.", "output": "x"})
    inputs = [e.prompt.partition("### Input:\n")[2].partition("\n\n### Response")[0] for e in found]
    assert inputs == ["0", "0.0", "false", "1", "true", "", "", '["red", {"a": "é"}]', ""]
    assert lines == [
        "input: numbers, true and false become text: 5 rows", "input: lists and objects become JSON: 1 row",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["alpaca", "prompt-completion", "chat"])
def test_system_and_the_turns_before_stand_in_the_prompt(form: str) -> None:
    asked, answer = ("prompt", "completion") if form == "prompt-completion" else ("instruction", "output")
    row = {
        asked: "And in June?",
        answer: "Warm.",
        "system": "You tell the weather.",
        "history": [["May?", "Cold."]],
    }
    tokenizer = chat_tokenizer("GPT-2", "ChatML")
    [example], lines = read(row, tokenizer=tokenizer, format=form)
    prompt = example.prompt
    assert prompt.index("You tell the weather.") < prompt.index("And in June?")
    if form == "prompt-completion":  # a prompt as it is: there is no form for turns before it
        assert lines == ["columns that are not used: history"]
        return
    assert (
        prompt.index("weather.") < prompt.index("May?") < prompt.index("Cold.") < prompt.index("And in June?")
    )
    assert lines == []
    assert len(example.learnt) == (form == "chat")
    with pytest.raises(DataError, match=r"history is no list of \[asked, answered\]"):
        read(row | {"history": "May? Cold."}, tokenizer=tokenizer, format=form)


@pytest.mark.parametrize("sharegpt", [False, True])
def test_chats_go_through_the_tokenizers_own_template(sharegpt: bool) -> None:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    row: dict[str, Any] = {"messages": [{"role": r, "content": c} for r, c in TURNS]}
    if sharegpt:
        row = {"system": "Be brief."}
        row["conversations"] = [{"from": names[r], "value": c} for r, c in TURNS[1:]]
    [example], lines = read(row, tokenizer=chat_tokenizer("GPT-2", "ChatML"))
    assert example.prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert example.prompt.endswith("Hi.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    assert (example.target, example.answer, example.end) == ("So.<|im_end|>", "So.", "<|im_end|>")
    assert lines == []


def test_columns_and_fields_that_are_not_used_are_listed_once() -> None:
    message = {"role": "user", "content": "Hi?", "name": "Ann"}
    row = {
        "messages": [message, {"role": "assistant", "content": "Hi."}],
        "id": 7,
        "weight": 0.5,
        "none": None,
    }
    _, lines = read(row, row, tokenizer=chat_tokenizer("GPT-2", "ChatML"))
    assert lines == [
        "the chat template writes nothing of: messages' name", "columns that are not used: id, weight",
    ]  # fmt: skip
    two = [{"role": "system", "content": "Be brief."}, *row["messages"]]  # type: ignore[misc]
    with pytest.raises(DataError, match="a system column and another system message"):
        read({"messages": two, "system": "Be long."}, tokenizer=chat_tokenizer("GPT-2", "ChatML"))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "not the assistant's"),
        ([{"role": "user", "content": "Hi"}], "not the assistant's"),
        ([{"role": "robot", "content": "Hi"}], "unknown role 'robot'"),
        ([{"role": "assistant", "content": None}], "not text"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "holds 'image', and only text"),
        ([{"role": "assistant"}], "has no field 'content'"),
        (7, "messages is int, not a list"),
    ],
)
def test_chats_that_cannot_be_learnt(messages: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read({"messages": messages}, tokenizer=chat_tokenizer("GPT-2", "ChatML"))


def test_formats_that_cannot_be() -> None:
    with pytest.raises(DataError, match="no chat template"):
        read({"messages": []})
    with pytest.raises(
        DataError, match=r"f\.jsonl: the first row has none of: messages.*columns are a, b\).*data\.columns"
    ):
        read({"a": "?", "b": "!"})
    with pytest.raises(DataError, match="the first row has none of"):
        read({"question": "?", "answer": "!", "solution": "!!"})
    with pytest.raises(DataError, match="output is null, not text"):
        read({"instruction": "?", "output": None})
