"""Encoding, masking, padding and the order of rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import BOS, EOS, SIZE, UNK, byte_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from neuroada_cli.data.batch import (
    IGNORED,
    Encoded,
    Example,
    align_padding,
    collate,
    encode,
    epoch_order,
    pad_id,
    preview,
    token_ids,
)
from neuroada_cli.errors import DataError
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


@pytest.mark.parametrize(("protocol", "given", "tokens"), [
    ("reft", None, 512), ("llm-adapters", None, 256), ("llm-adapters", 300, 300),
])  # fmt: skip
def test_a_protocol_has_its_own_length(protocol: str, given: int | None, tokens: int, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    asked = {"instruction": "How many?", "output": "x" * 900, "answer": "3"}
    file.write_text(json.dumps(asked) + "\n", encoding="utf-8")
    section = DataSection(task="math", protocol=protocol, train=str(file), max_length=given)
    prepared = prepare(section, get_task("math"), byte_tokenizer(), 0)
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


def test_the_preview_tells_learnt_tokens_from_the_rest() -> None:
    tokenizer = byte_tokenizer()
    [encoded], _ = encode([row("fragé\n", "ü")], tokenizer, 64)
    shown = preview(encoded, tokenizer)
    assert shown.plain == "<s>fragé↵\nü</s>"
    styles = {shown.plain[span.start : span.end]: str(span.style) for span in shown.spans}
    assert styles["<s>fragé↵\n"] == "dim"
    assert "green" in styles["ü</s>"]
