"""The seam of prompt and answer, for every kind of tokenizer and whatever stands on its two sides."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers_table import EXACT, MAKERS, tokenizer_of
from tokenizers_table import SPECIAL as SPECIAL_TOKENS

from neuroada_cli.data.batch import IGNORED, Encoded, Example
from neuroada_cli.data.encoding import encode, prompt_ids
from neuroada_cli.data.seams import Coder
from neuroada_cli.errors import DataError

PIECES = [
    " ", "  ", "\n", "\n\n", "\t", "bad", "good", " yes", "Label:", ".", ":", "4", "12", "-3", "é", "日本",
    "😀", "▁", "'s",
    "<|im_end|>", "<|im_start|>", "<s>", "</s>", "<unk>", "[end]", "a b", "##x", "Ġ", "{input}",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=5).map("".join)


def squeezed(text: str) -> str:
    """What every tokenizer keeps, without case, accents, spaces and control characters."""
    plain = unicodedata.normalize("NFKD", text).lower().replace("▁", " ")  # SentencePiece's own space
    return "".join(c for c in plain if not c.isspace() and unicodedata.category(c)[0] not in "MC")


SPECIAL = re.compile(r"(<unk>|<s>|</s>|<\|im_start\|>|<\|im_end\|>) ")


SPACED = ("SentencePiece, a space before every text", "RoBERTa")


def as_told(name: str, text: str, first: bool) -> str:
    """Without the one space that a tokenizer puts in front of a text and decoders take off again: at its
    beginning, of some tokenizers also behind every special token.
    """
    text = text.replace("▁", " ") if name.startswith("SentencePiece") else text  # it is its space
    text = text.removeprefix(" ") if first else text
    return SPECIAL.sub(r"\1", text) if name in SPACED else text


def check(name: str, prompt: str, answer: str) -> Encoded:
    """One row: asked as it is trained, learnt from its answer's first character to its end."""
    tokenizer = tokenizer_of(name)
    coder, row = Coder(tokenizer), Example(prompt, answer, answer, 0)
    [encoded], report = encode([row], tokenizer, 10_000)
    [asked] = prompt_ids([row], tokenizer)
    assert encoded.prompt == len(asked)
    assert encoded.input_ids[: len(asked)] == asked == coder.ids(prompt)
    assert encoded.labels == [IGNORED] * len(asked) + encoded.input_ids[len(asked) :]
    assert encoded.input_ids[-1] == tokenizer.eos_token_id
    learnt = coder.decode(encoded.input_ids).removeprefix(coder.decode(asked))
    ended = answer if answer.endswith("</s>") else f"{answer}</s>"
    if name in EXACT:
        assert coder.decode(encoded.input_ids) == coder.decode(asked) + learnt
        first = not asked or asked[-1] < len(SPECIAL_TOKENS)
        assert as_told(name, learnt, first) == as_told(name, ended, first)
    elif not report.unknown:
        assert squeezed(learnt) == squeezed(ended)
    return encoded


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=40, deadline=None)
@given(prompt=TEXTS, answer=TEXTS)
@example(prompt="Label: ", answer="bad")
@example(prompt="Label:", answer=" bad")
@example(prompt="", answer="bad")
@example(prompt="x\n", answer="\ny")
@example(prompt="12", answer="34")
@example(prompt="<|im_start|>user\n", answer="<|im_start|><|im_end|>")
@example(prompt="ask</s>", answer="say</s>")
@example(prompt="", answer="▁</s>")
@example(prompt="", answer="\t</s>")
def test_what_is_asked_is_what_was_trained_and_the_whole_answer_is_learnt(
    name: str, prompt: str, answer: str
) -> None:
    assume(prompt or not answer.startswith("<s>"))  # which the tokenizer would write itself
    left = Coder(tokenizer_of(name)).as_written(answer).replace("</s>", "")
    if answer.replace("</s>", "").strip() and left.strip():
        check(name, prompt, answer)
        return
    with pytest.raises(DataError, match="no answer to learn"):
        check(name, prompt, answer)


@pytest.mark.parametrize("name", MAKERS)
def test_a_prompt_that_ends_in_a_space_hides_nothing_of_the_answer(name: str) -> None:
    tokenizer = tokenizer_of(name)
    coder = Coder(tokenizer)
    one, other = (check(name, *row) for row in (("Label: ", "bad"), ("Label:", " bad")))
    for encoded in (one, other):
        learnt = [label for label in encoded.labels if label != IGNORED]  # type: ignore[union-attr]
        assert coder.decode(learnt[:-1]).strip() == "bad"


def test_the_start_is_the_tokenizers_also_where_a_row_brings_it() -> None:
    tokenizer = tokenizer_of("Llama 3")
    [encoded], _ = encode([Example("", "<s>bad", "<s>bad", 0)], tokenizer, 99)
    assert encoded.input_ids == [1, *Coder(tokenizer).going_on("bad"), 2]
    assert encoded.prompt == 1


def test_rows_whose_text_is_tokenised_in_parts_are_counted() -> None:
    rows = [Example(*row, row[1], n) for n, row in enumerate([("Label: ", "bad"), ("Label:", " bad")])]
    assert encode(rows, tokenizer_of("GPT-2"), 99)[1].seams == 1
    assert encode(rows, tokenizer_of("bytes"), 99)[1].seams == 0


def test_a_published_task_keeps_the_papers_rule_and_says_where_it_bites() -> None:
    """Prompt and target together, the prompt by itself to find the length: the answer's first letters go."""
    tokenizer = tokenizer_of("GPT-2")
    rows = [Example(*row, row[1], n) for n, row in enumerate([("Label: ", "bad"), ("Label:", " bad")])]
    [first, second], report = encode(rows, tokenizer, 99, published=True)
    assert (
        first.input_ids == second.input_ids == [*Coder(tokenizer).ids("Label: bad"), tokenizer.eos_token_id]
    )
    assert [row.prompt for row in (first, second)] == [4, 3]
    assert report.seams == 1
    assert prompt_ids(rows, tokenizer, published=True)[0] == Coder(tokenizer).ids("Label: ")


def test_earlier_turns_are_learnt_between_their_own_seams() -> None:
    """Also where a template leaves the end of a turn to the next one."""
    text = "<|im_start|>ask a <|im_end|>say b<|im_end|>ask c"
    learnt = tuple((text.index(part), text.index(part) + len(part)) for part in ("say b<|im_end|>",))
    for name in MAKERS:
        tokenizer = tokenizer_of(name)
        row = Example(text, " say d", "say d", 0, rendered=True, learnt=learnt)
        [encoded], _ = encode([row], tokenizer, 999)
        assert isinstance(encoded.labels, list)
        coder = Coder(tokenizer)
        runs = coder.decode([label for label in encoded.labels if label != IGNORED])
        assert squeezed(runs) == squeezed("say b<|im_end|>say d</s>"), name
        assert encoded.input_ids[: encoded.prompt] == prompt_ids([row], tokenizer)[0]
