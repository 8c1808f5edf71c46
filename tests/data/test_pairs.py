"""Rows of encoder-decoders: what either side gets, and a loss that is transformers' own."""

from __future__ import annotations

import pytest
import torch
from tiny_pairs import BOS, EOS, PAIRS, UNK, pairs_tokenizer
from tiny_run import one_thread  # noqa: F401
from torch.testing import assert_close

from neuroada_cli.data.batch import IGNORED, Encoded, Example, collate
from neuroada_cli.data.inputs import encode_for
from neuroada_cli.errors import DataError
from neuroada_cli.hub.reader import Reader
from neuroada_cli.loop.loss import count_targets, token_loss

TEXTS = [("When is it due?", "2031-05-06"), ("Hi", "a"), ("When?", "Tomorrow, or never.")]
EXAMPLES = [Example(prompt, target, target, row) for row, (prompt, target) in enumerate(TEXTS)]


def encoded(name: str, max_length: int = 64) -> list[Encoded]:
    start = UNK if name == "t5" else EOS
    return encode_for(Reader(pairs_tokenizer(name), start), EXAMPLES, max_length)[0]


@pytest.mark.parametrize("name", PAIRS)
def test_the_loss_is_what_transformers_makes_of_the_labels(name: str) -> None:
    """transformers shifts the labels itself; its mean over them, times their number, is our sum."""
    rows, model = encoded(name), PAIRS[name]()
    batch = collate(rows, UNK)
    loss, count = token_loss(model, batch)
    longest = max(len(row.decoder or ()) for row in rows)
    labels_BS = torch.tensor([[*row.labels[1:], *[IGNORED] * (longest - len(row.labels))] for row in rows])  # type: ignore[index,arg-type]
    theirs = model(input_ids=batch.tokens_BS, attention_mask=batch.attention_BS, labels=labels_BS).loss
    assert count == count_targets(batch.labels_BS) == int((labels_BS != IGNORED).sum())
    assert_close(loss, theirs * count, rtol=1e-5, atol=1e-4)
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim == 2]
    ours, wanted = torch.autograd.grad(loss, weights), torch.autograd.grad(theirs * count, weights)
    assert sum(bool(grad.any()) for grad in wanted) > 20
    for mine, their in zip(ours, wanted, strict=True):
        assert_close(mine, their, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_a_row_alone_has_the_loss_that_it_has_among_others(name: str) -> None:
    rows, model = encoded(name), PAIRS[name]()
    together = token_loss(model, collate(rows, UNK))[0]
    alone = sum(token_loss(model, collate([row], UNK))[0] for row in rows)
    assert_close(together, alone, rtol=1e-5, atol=1e-4)


def test_either_side_gets_its_text_with_its_marks() -> None:
    tokenizer = pairs_tokenizer("bart")
    row = encoded("bart")[0]
    assert row.input_ids == [BOS, *tokenizer(TEXTS[0][0], add_special_tokens=False)["input_ids"], EOS]
    answer = [BOS, *tokenizer(TEXTS[0][1], add_special_tokens=False)["input_ids"], EOS]
    assert row.decoder == [EOS, *answer]
    assert row.labels == [IGNORED, *answer]


def test_what_is_too_long_is_cut_on_its_own_side_and_counted() -> None:
    reader = Reader(pairs_tokenizer("bart"), EOS)
    with pytest.raises(DataError, match=r"1 of 3 rows have a prompt of more than data.max_length=12 tokens"):
        encode_for(reader, EXAMPLES, 12)
    rows, report = encode_for(reader, EXAMPLES, 12, too_long="cut")
    assert [len(row) for row in rows] == [12, 4, 7]
    assert (rows[0].input_ids[0], rows[0].input_ids[-1]) == (BOS, EOS), "its marks stay"
    assert reader.tokenizer.decode(rows[0].input_ids[1:-1]) == TEXTS[0][0][-10:], "what is asked comes last"
    assert [len(row.decoder or ()) for row in rows] == [13, 4, 13]
    assert (report.truncated, report.shortened, report.longest, report.longest_answer) == (1, 1, 12, 13)
    assert report.tokens == 12 + 4 + 7 + 13 + 4 + 13
    assert report.targets == 12 + 3 + 12
    kept, report = encode_for(reader, EXAMPLES, 12, too_long="drop")
    assert ([row.row for row in kept], report.dropped) == ([1], 2)
    with pytest.raises(DataError, match=r"all 3 rows are longer than data\.max_length=2"):
        encode_for(reader, EXAMPLES, 2, too_long="drop")


def test_rows_that_an_encoder_decoder_cannot_learn_are_counted() -> None:
    reader = Reader(pairs_tokenizer("t5"), UNK)
    with pytest.raises(DataError, match=r"1 of 2 rows have no prompt.*the first is row 1"):
        encode_for(reader, [EXAMPLES[0], Example(" ", "text", "text", 1)], 64)
    with pytest.raises(DataError, match="1 of 1 rows have no answer to learn"):
        encode_for(reader, [Example("Why?", " ", "", 0)], 64)
    with pytest.raises(DataError, match="2 of 3 rows have no answer to learn"):
        encode_for(reader, [*EXAMPLES[:1], Example("Why?", "</s>", "</s>", 1), Example("a", "b", "", 2)], 64)
    with pytest.raises(DataError, match="there are no rows"):
        encode_for(reader, [], 64)


def test_ends_and_unknown_tokens_within_an_answer_are_counted() -> None:
    reader = Reader(pairs_tokenizer("bart"), EOS)
    rows = [Example("a", text, text, n) for n, text in enumerate(("b", "b</s>c", "<unk>"))]
    report = encode_for(reader, rows, 64)[1]
    assert (report.ended, report.unknown) == (1, 1)
