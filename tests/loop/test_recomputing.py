"""Gradient checkpointing in evaluation, for choosing by gradients: less memory, the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import pico_bert, pico_gpt2, pico_llama
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401
from torch import Tensor, nn
from transformers import (
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from neuroada_cli.benchmarking.steps import random_batch
from neuroada_cli.commands import select
from neuroada_cli.data.batch import IGNORED
from neuroada_cli.delta.targets import find_targets
from neuroada_cli.errors import ModelError
from neuroada_cli.loop.loss import LOSSES
from neuroada_cli.loop.recomputing import FLAG, recomputing
from neuroada_cli.memory import TensorBytes, model_tensors
from neuroada_cli.selection import from_rows
from neuroada_cli.selection.choice import Choice
from neuroada_cli.selection.spread import Spread

DROPOUT = 0.3


def pico_opt() -> OPTForCausalLM:
    """Its blocks apply dropout themselves, not by a module in them; it also has some to drop whole."""
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            init_std=0.2, max_position_embeddings=64, word_embed_proj_dim=32, dropout=DROPOUT,
            layerdrop=DROPOUT,
        )
    ).eval()  # fmt: skip


def classifier(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Of a language model; its forward keeps keys and values unless it is told not to."""
    config.pad_token_id, config.num_labels, config.initializer_range = 0, 2, 0.2
    torch.manual_seed(0)
    return kind(config).eval()


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "llama": (lambda: pico_llama(attention_dropout=DROPOUT), "generation"),
    "gpt2": (lambda: pico_gpt2(resid_pdrop=DROPOUT, attn_pdrop=DROPOUT, embd_pdrop=DROPOUT), "generation"),
    "opt": (pico_opt, "generation"),
    "bert": (
        lambda: pico_bert(hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT),
        "classification",
    ),
    "llama classifier": (
        lambda: classifier(LlamaForSequenceClassification, pico_llama().config),
        "classification",
    ),
    "gpt2 classifier": (
        lambda: classifier(GPT2ForSequenceClassification, pico_gpt2().config),
        "classification",
    ),
}


def gradients(model: nn.Module, kind: str, wanted: bool) -> tuple[dict[str, Tensor], int]:
    """(every parameter's gradient, the peak of tensor bytes on the way to it)."""
    model.requires_grad_(True)
    batch = random_batch(96, kind, 4, 32, "cpu")
    batch.attention_BS[1, 20:] = 0
    if kind == "generation":
        batch = replace(batch, labels_BS=batch.labels_BS.masked_fill(batch.attention_BS == 0, IGNORED))
    with recomputing(model, wanted), TensorBytes(model_tensors(model)) as meter:
        LOSSES[kind](model, batch)[0].backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, meter.peak


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_dense_ones_without_dropout(name: str) -> None:
    make, kind = MODELS[name]
    model = make()
    modes = [module.training for module in model.modules()]
    cached = model.config.use_cache
    expected, most = gradients(make(), kind, wanted=False)
    found, peak = gradients(model, kind, wanted=True)
    assert peak < most, "something was recomputed"
    assert found.keys() == expected.keys()
    for parameter, grad in expected.items():
        torch.testing.assert_close(found[parameter], grad, msg=lambda text, p=parameter: f"{p}: {text}")
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache == cached
    assert not any(getattr(module, FLAG, False) for module in model.modules())


def test_a_model_that_cannot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pico_llama()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(ModelError, match="cannot recompute activations"), recomputing(model):
        pass


# ---------------------------------------------------------------------------------------------------
# Choosing by gradients


def chosen(wanted: bool, criterion: str) -> tuple[dict[str, Tensor], int]:
    """(the selection of a deep model with dropout, the peak of tensor bytes while it was made)."""
    model = pico_llama(num_hidden_layers=8, attention_dropout=DROPOUT)
    choice = Choice(find_targets(model, ["all-linear"], ["lm_head"]), Spread(3), criterion)
    batch = random_batch(96, "generation", 8, 48, "cpu")
    with TensorBytes(model_tensors(model)) as meter:
        selection = from_rows.select_from_rows(
            {}, model, choice, [batch], "generation", budget=1, gradient_checkpointing=wanted
        )  # fmt: skip
    return selection.indices, meter.peak


@pytest.mark.parametrize("criterion", ["gradient", "snip"])
def test_choosing_takes_less_memory_and_chooses_the_same(
    criterion: str,
) -> None:
    kept, most = chosen(False, criterion)
    recomputed, peak = chosen(True, criterion)
    assert peak < 0.6 * most
    assert all(torch.equal(recomputed[name], kept[name]) for name in kept)


@pytest.mark.parametrize(("criterion", "expected"), [("gradient", True), ("activation", False)])
def test_the_recipe_s_setting_reaches_the_criteria_that_need_gradients(
    criterion: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = from_rows.recomputing
    monkeypatch.setattr(
        from_rows, "recomputing", lambda model, wanted: asked.append(wanted) or real(model, wanted)
    )
    folder = tiny_llama_folder(tmp_path / "model")
    recipe = tiny_recipe(
        folder, tmp_path / "run", select={"criterion": criterion, "calibration_batches": 1},
        train={"gradient_checkpointing": True},
    )  # fmt: skip
    select.run(recipe, quiet=True)
    assert asked == [expected]
