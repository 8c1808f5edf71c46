"""Padding, batches and the order of rows."""

from __future__ import annotations

import pytest
import torch
from conftest import pico_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import EOS, SIZE, UNK, byte_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from neuroada_cli.data.batch import (
    IGNORED,
    Example,
    align_padding,
    collate,
    epoch_order,
    pad_id,
)
from neuroada_cli.data.encoding import encode
from neuroada_cli.data.inputs import encode_for
from neuroada_cli.errors import DataError
from neuroada_cli.hub.reader import Reader


def row(prompt: str = "ask\n", target: str = "say", number: int = 0) -> Example:
    return Example(prompt, target, target, number)


def test_the_padding_token_is_unk_else_pad_else_end() -> None:
    assert pad_id(byte_tokenizer(pad_token="!")) == UNK
    with_pad = byte_tokenizer(unk_token=None, pad_token="!")
    assert pad_id(with_pad) == with_pad.pad_token_id not in (UNK, EOS)
    assert pad_id(byte_tokenizer(unk_token=None)) == EOS
    with pytest.raises(DataError, match="neither"):
        pad_id(byte_tokenizer(unk_token=None, eos_token=None))


def test_no_logit_depends_on_which_token_pads_or_on_a_masked_one_in_front() -> None:
    """LoReFT's code adds a token for padding, and puts one before every row; see docs/protocols.md."""
    model = pico_llama(vocabulary=SIZE)
    rows, _ = encode([row(target="a"), row(target="abc")], byte_tokenizer(), 64)
    logits = []
    for pad in (UNK, EOS):
        batch = collate(rows, pad)
        with torch.no_grad():
            logits.append(model(input_ids=batch.tokens_BS, attention_mask=batch.attention_BS).logits)
    real_BS = batch.attention_BS.bool()
    assert torch.equal(logits[0][real_BS], logits[1][real_BS])

    in_front = torch.nn.functional.pad
    tokens_BS = in_front(batch.tokens_BS, (1, 0), value=EOS)
    with torch.no_grad():
        shifted = model(input_ids=tokens_BS, attention_mask=in_front(batch.attention_BS, (1, 0))).logits
    torch.testing.assert_close(shifted[:, 1:][real_BS], logits[1][real_BS], rtol=1e-4, atol=1e-5)


def test_collate_pads_on_the_right_and_masks_it() -> None:
    rows, _ = encode([row(target="a"), row(target="abc", number=7)], byte_tokenizer(), 64)
    batch = collate(rows, pad=UNK)
    assert batch.tokens_BS.shape == batch.labels_BS.shape == (2, 9)
    assert batch.tokens_BS[0, 7:].tolist() == [UNK, UNK]
    assert batch.attention_BS.tolist() == [[1] * 7 + [0] * 2, [1] * 9]
    assert batch.labels_BS[0].tolist()[5:] == [rows[0].input_ids[5], EOS, IGNORED, IGNORED]
    assert batch.rows == [0, 7]


def test_longer_rows_of_classes_are_cut_or_left_out_and_counted() -> None:
    reader = Reader(byte_tokenizer(pairs=True))
    rows = [Example("ab", "", 0, 0), Example("a much longer text", "", 1, 1)]
    for how, dropped in (("refuse", 0), ("cut", 0), ("drop", 1)):
        found, report = encode_for(reader, rows, 12, "classification", too_long=how)  # type: ignore[arg-type]
        assert (report.dropped, report.truncated, len(found)) == (dropped, 1 - dropped, 2 - dropped)
    with pytest.raises(DataError, match=r"all 1 rows are longer than data\.max_length=12"):
        encode_for(reader, rows[1:], 12, "classification", too_long="drop")


def test_sentence_pairs_and_scores() -> None:
    tokenizer = byte_tokenizer(pairs=True)
    examples = [Example("ab", "", 1, 0, "cd"), Example("a" * 20, "", 0, 1, "b" * 30)]
    rows, report = encode(examples, tokenizer, 24, "classification")
    assert rows[0].input_ids.count(EOS) == 2
    assert rows[0].type_ids == [0, 0, 0, 0, 1, 1, 1]
    assert (len(rows[1]), rows[1].input_ids[-1], report.truncated) == (24, EOS, 1)
    batch = collate(rows, UNK)
    assert batch.labels_BS.tolist() == [1, 0]
    assert batch.labels_BS.dtype == torch.int64
    assert batch.types_BS is not None
    assert batch.types_BS.shape == (2, 24)
    scores, _ = encode(
        [Example("ab", "", 2, 0, "c"), Example("a", "", 3.5, 1, "c")], tokenizer, 24, "regression"
    )
    assert collate(scores, UNK).labels_BS.dtype == torch.float32


def test_a_decoder_classifies_a_row_the_same_with_and_without_padding() -> None:
    """It takes the last token that is not padding, so batch and config must mean the same token."""
    torch.manual_seed(0)
    shape = pico_llama(vocabulary=SIZE).config.to_dict() | {"num_labels": 3, "pad_token_id": None}
    model = LlamaForSequenceClassification(LlamaConfig(**shape)).eval()
    tokenizer = byte_tokenizer()
    pad = align_padding(model, tokenizer)
    assert model.config.pad_token_id == pad == UNK
    rows, _ = encode(
        [Example("short", "", 0, 0), Example("much longer", "", 1, 1)], tokenizer, 32, "classification"
    )
    with torch.no_grad():
        together = [collate(rows, pad)]
        alone = [collate([r], pad) for r in rows]
        logits = [model(b.tokens_BS, attention_mask=b.attention_BS).logits for b in (*together, *alone)]
    torch.testing.assert_close(logits[0], torch.cat(logits[1:]), rtol=1e-4, atol=1e-5)


LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=400)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 33), st.integers(0, 2**32 - 1), st.integers(0, 50), st.booleans())
def test_an_epoch_is_every_row_once_and_the_same_each_time(
    lengths: list[int], batch: int, seed: int, epoch: int, group: bool
) -> None:
    order = epoch_order(lengths, batch, seed, epoch, group)
    assert sorted(i for b in order for i in b) == list(range(len(lengths)))
    assert all(0 < len(b) <= batch for b in order)
    assert order == epoch_order(lengths, batch, seed, epoch, group)
    if group:
        assert max(lengths) == max(lengths[i] for i in order[0]), "the longest batch comes first"


def test_epochs_and_seeds_differ_and_grouping_saves_padding() -> None:
    lengths = torch.randint(1, 500, (2000,), generator=torch.Generator().manual_seed(1)).tolist()

    def padding(group: bool) -> int:
        order = epoch_order(lengths, 16, 42, 0, group)
        return sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in order)

    assert padding(True) < 0.1 * padding(False)
    orders = [epoch_order(lengths, 16, seed, epoch) for seed, epoch in ((42, 0), (42, 1), (43, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
