"""Summed losses over targets only, against the plain loss over all logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import pico_bert, pico_gpt2, pico_llama
from tiny_run import one_thread  # noqa: F401
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import Gemma2Config, Gemma2ForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from neuroada_cli.data.batch import IGNORED, Batch
from neuroada_cli.delta.linear import DeltaLinear
from neuroada_cli.delta.model import attach
from neuroada_cli.errors import ModelError
from neuroada_cli.training.loss import LOSSES, class_loss, count_targets, score_loss, token_loss


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
