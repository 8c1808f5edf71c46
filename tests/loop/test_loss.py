"""Summed losses over targets only, against the plain loss over all logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import pico_bert, pico_gpt2, pico_llama
from tiny_run import one_thread  # noqa: F401
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    FSMTConfig,
    FSMTForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
)

from neuroada_cli.data.batch import IGNORED, Batch, Encoded, collate
from neuroada_cli.delta.linear import DeltaLinear
from neuroada_cli.delta.model import attach
from neuroada_cli.delta.targets import find_targets
from neuroada_cli.errors import ModelError
from neuroada_cli.loop import loss as loss_module
from neuroada_cli.loop.linear_cross_entropy import SLICE_ELEMENTS, linear_cross_entropy
from neuroada_cli.loop.loss import LOSSES, class_loss, count_targets, score_loss, token_loss


def pico_gemma2() -> PreTrainedModel:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.5,
        )
    ).eval()  # fmt: skip


def pico_opt() -> PreTrainedModel:
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=32, init_std=0.3,
        )
    ).eval()  # fmt: skip


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": pico_llama, "gpt2": pico_gpt2, "gemma2-softcap": pico_gemma2, "opt": pico_opt,
}  # fmt: skip


def padded_rows() -> Batch:
    """Three rows of 11, 7 and 4 tokens with 4, 3, 1 targets, and a label that nothing can predict."""
    tokens_BS = torch.randint(3, 96, (3, 11), generator=torch.Generator().manual_seed(7))
    attention_BS, labels_BS = torch.zeros_like(tokens_BS), torch.full_like(tokens_BS, IGNORED)
    for row, (length, targets) in enumerate([(11, 4), (7, 3), (4, 1)]):
        attention_BS[row, :length] = 1
        labels_BS[row, length - targets : length] = tokens_BS[row, length - targets : length]
    labels_BS[0, 0] = tokens_BS[0, 0]
    return Batch(tokens_BS, attention_BS, labels_BS, rows=[0, 1, 2])


def full_loss(model: nn.Module, rows: Batch) -> Tensor:
    """The obvious way: logits everywhere, cross entropy with ignored labels."""
    logits_BSV = model(input_ids=rows.tokens_BS, attention_mask=rows.attention_BS).logits
    return F.cross_entropy(
        logits_BSV[:, :-1].flatten(0, 1).float(), rows.labels_BS[:, 1:].flatten(), reduction="sum"
    )


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_loss_over_all_logits_with_its_gradients(name: str) -> None:
    model, rows = MODELS[name](), padded_rows()
    expected = full_loss(model, rows)
    wanted = torch.autograd.grad(expected, [p for p in model.parameters() if p.requires_grad])
    loss, count = token_loss(model, rows)
    got = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    assert count == 8 == count_targets(rows.labels_BS)
    assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    for a, b in zip(got, wanted, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_softcap_is_in_the_loss() -> None:
    """Logits capped at 2 bound the loss of every token; raw ones do not."""
    capped, count = token_loss(pico_gemma2(), padded_rows())
    model = pico_gemma2()
    model.config.final_logit_softcapping = None
    raw, _ = token_loss(model, padded_rows())
    assert capped / count < 4 + torch.log(torch.tensor(96.0))
    assert abs(capped - raw) > 0.1


def test_only_target_positions_reach_the_output_embedding() -> None:
    model, seen = pico_llama(), []
    model.lm_head.register_forward_hook(lambda *args: seen.append(args[2].shape))
    token_loss(model, padded_rows())
    assert seen == [torch.Size([1, 8, 96])]
    token_loss(model, padded_rows())  # the hook is removed and set anew, not stacked
    assert model(input_ids=padded_rows().tokens_BS).logits.shape == (3, 11, 96)


def frozen(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Only deltas in the attention train, so that the output embedding's gradient is not wanted."""
    model = MODELS[name]().to(dtype)
    model.requires_grad_(False)
    targets = find_targets(model, ["all-linear"], ["lm_head"])
    attach(model, {n: torch.zeros(m.shape[0], 1, dtype=torch.int32) for n, m in targets.items()})
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("slice_elements", [1, 3 * 96, 1 << 20])
def test_slices_of_the_vocabulary_logits_equal_the_whole(
    name: str, slice_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SLICE_ELEMENTS, "cpu", slice_elements)
    model, rows = frozen(name), padded_rows()
    deltas = [p for p in model.parameters() if p.requires_grad]
    expected = full_loss(model, rows)
    wanted = torch.autograd.grad(expected / 8, deltas)
    loss, count = token_loss(model, rows)
    got = torch.autograd.grad(loss / 8, deltas)
    assert count == 8
    assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    for a, b in zip(got, wanted, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert_close(token_loss(model, rows)[0], expected, rtol=1e-6, atol=1e-5)


def test_slices_in_bf16_are_as_near_to_fp32_as_the_whole() -> None:
    exact, rows = full_loss(frozen("llama"), padded_rows()), padded_rows()
    loss, _ = token_loss(frozen("llama", torch.bfloat16), rows)
    assert loss.dtype == torch.float32
    assert_close(loss, exact, rtol=2e-2, atol=0)


def test_only_untouched_logits_of_a_frozen_embedding_are_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a model that caps its logits nor one that trains its head."""
    calls = []

    def counted(hidden_NH: Tensor, head: nn.Linear, targets_N: Tensor) -> Tensor:
        calls.append(hidden_NH.shape)
        return linear_cross_entropy(hidden_NH, head, targets_N)

    monkeypatch.setattr(loss_module, "linear_cross_entropy", counted)
    token_loss(frozen("gemma2-softcap"), padded_rows())
    token_loss(pico_llama(), padded_rows())
    assert calls == []
    token_loss(frozen("llama"), padded_rows())
    assert calls == [torch.Size([8, 32])]


def test_vocabulary_logits_never_stand_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            weight = func is torch.ops.aten.t.default  # a view of the frozen embedding
            if isinstance(out, Tensor) and out.ndim > 1 and out.shape[-1] == 96 and not weight:
                self.rows = max(self.rows, out.numel() // 96)
            return out

    monkeypatch.setitem(SLICE_ELEMENTS, "cpu", 3 * 96)
    model, rows = frozen("llama"), padded_rows()
    with Largest() as largest:
        loss, _ = token_loss(model, rows)
        loss.backward()
    assert largest.rows == 3


class _Waits(TorchDispatchMode):
    """Counts what a device has to be waited for: a size or a number that only it knows."""

    ASKS = ("aten.nonzero", "aten._local_scalar_dense", "aten.masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        masks = name.startswith("aten.index.Tensor") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name.startswith(self.ASKS) or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapted_head", [False, True])
def test_with_the_places_known_the_loss_waits_for_nothing_and_is_the_same_bits(adapted_head: bool) -> None:
    model = pico_llama()
    targets = find_targets(model, ("all-linear", "lm_head") if adapted_head else ("all-linear",))
    attach(model, {name: torch.zeros(t.shape[0], 1, dtype=torch.int32) for name, t in targets.items()})
    batch = padded_rows()
    known = batch.with_places()
    losses = [token_loss(model, each) for each in (batch, known)]
    gradients = []
    for loss, _ in losses:
        model.zero_grad()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert torch.equal(losses[0][0], losses[1][0])
    assert losses[0][1] == losses[1][1]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    with _Waits() as bare:
        model(input_ids=batch.tokens_BS, attention_mask=batch.attention_BS, use_cache=False)
    with _Waits() as ours:
        token_loss(model, known)[0].backward()
    assert ours.found == bare.found, "the loss itself waits"
    with _Waits() as before:
        token_loss(model, batch)
    assert before.found != bare.found


def test_looking_at_the_logits_once_leaves_the_random_stream_alone() -> None:
    model = frozen("llama")
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    token_loss(model, padded_rows())
    assert torch.rand(()) == expected


def test_an_adapted_output_embedding_is_found() -> None:
    model, rows = pico_llama(), padded_rows()
    expected = full_loss(model, rows)
    attach(model, {"lm_head": torch.zeros(96, 1, dtype=torch.int32)})
    loss, _ = token_loss(model, rows)
    loss.backward()
    assert_close(loss, expected)
    assert isinstance(model.lm_head, DeltaLinear)
    assert model.lm_head.delta.grad is not None


def test_the_loss_of_a_bf16_model_is_taken_in_fp32() -> None:
    model, rows = pico_llama().bfloat16(), padded_rows()
    logits_BSV = model(input_ids=rows.tokens_BS, attention_mask=rows.attention_BS).logits
    expected = F.cross_entropy(
        logits_BSV[:, :-1].flatten(0, 1).float(), rows.labels_BS[:, 1:].flatten(), reduction="sum"
    )
    loss, _ = token_loss(model, rows)
    assert loss.dtype == torch.float32
    assert_close(loss, expected, rtol=2e-2, atol=0)


def test_rows_without_a_target_give_zero_and_no_nan() -> None:
    rows = padded_rows()
    rows.labels_BS.fill_(IGNORED)
    loss, count = token_loss(pico_llama(), rows)
    assert (float(loss), count) == (0.0, 0)


def test_a_model_that_cannot_predict_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match="no output embeddings"):
        token_loss(pico_llama().model, padded_rows())


def test_an_output_embedding_that_looks_tokens_up_as_well_is_left_alone() -> None:
    torch.manual_seed(0)
    sizes = {
        "src_vocab_size": 96, "tgt_vocab_size": 96, "langs": ["en", "de"], "d_model": 32, "init_std": 0.2,
        "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": 1,
    }  # fmt: skip
    model = FSMTForConditionalGeneration(FSMTConfig(**sizes)).eval()
    assert isinstance(model.get_output_embeddings(), nn.Embedding)
    rows = [
        Encoded([5, 6, 7], [-100, 8, 9, 2], 0, decoder=[2, 8, 9, 2]),
        Encoded([4], [-100, 6], 1, decoder=[2, 6]),
    ]
    loss, targets = token_loss(model, collate(rows, pad=1))
    apart = torch.zeros(())
    for row in rows:
        assert isinstance(row.labels, list)
        tokens, begun = torch.tensor([row.input_ids]), torch.tensor([row.decoder])
        logits_SV = model(input_ids=tokens, decoder_input_ids=begun, use_cache=False).logits[0, :-1]
        apart = apart + F.cross_entropy(logits_SV, torch.tensor(row.labels[1:]), reduction="sum")
    assert targets == 4
    assert_close(loss, apart, rtol=1e-4, atol=1e-4)


def test_a_model_that_predicts_several_tokens_at_a_place_is_refused() -> None:
    sizes = {
        "vocab_size": 96, "hidden_size": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "ngram": 2,
        "num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
    }  # fmt: skip
    model = ProphetNetForConditionalGeneration(ProphetNetConfig(**sizes)).eval()
    batch = collate([Encoded([5, 6, 7], [1, 8, 9], 0, decoder=[1, 8, 9])], pad=0)
    with pytest.raises(ModelError, match=r"states of \(1, 2, 3\), not one per row and token"):
        token_loss(model, batch)


def test_classes_and_scores() -> None:
    rows, model = padded_rows(), pico_bert(num_labels=3)
    rows = replace(rows, labels_BS=torch.tensor([2, 0, 1]))
    logits_BC = model(input_ids=rows.tokens_BS, attention_mask=rows.attention_BS).logits
    loss, count = class_loss(model, rows)
    assert count == 3
    assert_close(loss, 3 * F.cross_entropy(logits_BC, rows.labels_BS))
    scorer = pico_bert(num_labels=1)
    rows = replace(rows, labels_BS=torch.tensor([0.5, 3.0, 4.25]))
    scores_B = scorer(input_ids=rows.tokens_BS, attention_mask=rows.attention_BS).logits[:, 0]
    loss, count = score_loss(scorer, rows)
    assert count == 3
    assert_close(loss, ((scores_B - rows.labels_BS) ** 2).sum())
    assert set(LOSSES) == {"generation", "classification", "regression"}


def test_segments_of_a_sentence_pair_reach_the_model() -> None:
    rows, model = replace(padded_rows(), labels_BS=torch.tensor([1, 0, 1])), pico_bert()
    types_BS = torch.zeros_like(rows.tokens_BS)
    types_BS[:, 3:] = 1
    with_types, _ = class_loss(model, replace(rows, types_BS=types_BS))
    assert (with_types - class_loss(model, rows)[0]).detach().abs() > 1e-4
