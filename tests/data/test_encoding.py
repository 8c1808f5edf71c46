"""What of a row is learnt: the answer and its end, and nothing of what is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_tokenizer import BOS, EOS, byte_tokenizer

from neuroada_cli.data.batch import IGNORED, Encoded, Example
from neuroada_cli.data.encoding import encode, preview
from neuroada_cli.data.seams import token_ids
from neuroada_cli.errors import DataError
from neuroada_cli.hub.reader import Reader
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.training.rows import prepare


def row(prompt: str = "ask\n", target: str = "say", number: int = 0) -> Example:
    return Example(prompt, target, target, number)


def learnt(encoded: Encoded) -> list[int]:
    assert isinstance(encoded.labels, list)
    return [label for label in encoded.labels if label != IGNORED]


def test_only_the_target_and_its_end_are_learnt() -> None:
    tokenizer = byte_tokenizer()
    [encoded], report = encode([row()], tokenizer, 64)
    assert encoded.input_ids == [BOS, *token_ids(tokenizer, "ask\nsay")[1:], EOS]
    assert tokenizer.decode(learnt(encoded)) == "say</s>"
    assert encoded.labels[:5] == [IGNORED] * 5  # <s> a s k \n
    assert (report.rows, report.tokens, report.targets, report.truncated) == (1, 9, 4, 0)


def test_llm_adapters_learn_the_prompt_too() -> None:
    [encoded], report = encode([row()], byte_tokenizer(), 64, loss_on_prompt=True)
    assert encoded.labels == encoded.input_ids
    assert report.targets == 8, "the first token has nothing before it to be predicted from"


def test_a_row_has_one_start_and_one_end() -> None:
    for tokenizer in (byte_tokenizer(), byte_tokenizer(eos=True), byte_tokenizer(bos=False)):
        for prompt in ("ask\n", "<s>ask\n"):  # chat templates write the start themselves
            [encoded], _ = encode([row(prompt)], tokenizer, 64)
            starts = 0 if prompt[0] == "a" and tokenizer("x")["input_ids"][0] != BOS else 1
            assert encoded.input_ids.count(BOS) == starts
            assert encoded.input_ids.count(EOS) == 1
            assert tokenizer.decode(learnt(encoded)) == "say</s>"
    [encoded], _ = encode([row(target="say</s>")], byte_tokenizer(), 64)
    assert encoded.input_ids.count(EOS) == 1


def test_cut_answers_are_counted() -> None:
    rows = [row(target="a"), row(target="a" * 50, number=1)]
    encoded, report = encode(rows, byte_tokenizer(), 20)
    assert [len(e) for e in encoded] == [7, 20]
    assert (report.truncated, report.longest) == (1, 20)
    assert EOS not in encoded[1].input_ids


@pytest.mark.parametrize("most", [3, 4, 5, 6, 7, 8])
def test_a_prompt_that_is_cut_keeps_its_start_token_and_its_last_one(most: int) -> None:
    tokenizer = byte_tokenizer()
    [encoded], _ = encode([row()], tokenizer, most, too_long="cut")
    whole = [BOS, *token_ids(tokenizer, "ask\nsay")[1:], EOS]
    gone = min(len(whole) - most, 3)
    assert encoded.input_ids == [BOS, *whole[1 + gone :]][:most]
    assert tokenizer.decode(encoded.input_ids[1:]).startswith("ask\n"[gone:])
    assert "say</s>".startswith(tokenizer.decode(learnt(encoded)))


@pytest.mark.parametrize(("protocol", "given", "tokens"), [
    ("reft", None, 512), ("llm-adapters", None, 256), ("llm-adapters", 300, 300),
])  # fmt: skip
def test_a_protocol_has_its_own_length(protocol: str, given: int | None, tokens: int, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    asked = {"instruction": "How many?", "output": "x" * 900, "answer": "3"}
    file.write_text(json.dumps(asked) + "\n", encoding="utf-8")
    section = DataSection(task="math", protocol=protocol, train=str(file), max_length=given)
    prepared = prepare(section, get_task("math"), Reader(byte_tokenizer()), 0)
    assert prepared.max_length == tokens == len(prepared.data.train[0])
    assert prepared.train_report.truncated == 1


@pytest.mark.parametrize("loss_on_prompt", [False, True])
def test_rows_without_an_answer_to_learn_stop_the_run(loss_on_prompt: bool) -> None:
    """Also where the prompt's tokens are learnt: a prompt alone teaches no answer."""
    tokenizer = byte_tokenizer()
    rows = [row(), row("p" * 11, "x", 1), row("p" * 30, "x", 2)]
    with pytest.raises(DataError, match=r"2 of 3 rows have nothing to learn.*max_length=12.*row 1"):
        encode(rows, tokenizer, 12, loss_on_prompt=loss_on_prompt)
    encode([row("p" * 10, "x", 1)], tokenizer, 12, loss_on_prompt=loss_on_prompt)  # one token is enough


def test_rows_without_an_answer_of_their_own_stop_the_run() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(DataError, match=r"1 of 2 rows have no answer to learn.*row 1"):
        encode([row(), row(target=" ", number=1)], tokenizer, 64)
    with pytest.raises(DataError, match="no rows"):
        encode([], tokenizer, 64)
    with pytest.raises(DataError, match="no end token"):
        encode([row()], byte_tokenizer(eos_token=None), 64)


def test_the_preview_tells_learnt_tokens_from_the_rest() -> None:
    tokenizer = byte_tokenizer()
    [encoded], _ = encode([row("fragé\n", "ü")], tokenizer, 64)
    shown = preview(encoded, tokenizer)
    assert shown.plain == "<s>fragé↵\nü</s>"
    styles = {shown.plain[span.start : span.end]: str(span.style) for span in shown.spans}
    assert styles["<s>fragé↵\n"] == "dim"
    assert "green" in styles["ü</s>"]
