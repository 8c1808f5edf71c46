"""What rows begin with, computed once: the same loss and the same gradients; and what needs no backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import pico_gpt2, pico_llama
from tiny_families import tiny
from torch import Tensor, nn

from neuroada_cli.data.batch import IGNORED, Batch, Encoded, collate, with_head
from neuroada_cli.errors import ModelError
from neuroada_cli.loop.loss import count_targets, token_loss
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.criteria import choose
from neuroada_cli.training.heads import check_heads

HEAD = [5, 6, 7, 8, 9, 10, 11]
TAILS = [[20, 21, 22, 23], [30, 31], [20, 40, 41, 42, 43, 44]]
ROWS = [
    Encoded(HEAD + tail, [IGNORED] * (len(HEAD) + 1) + tail[1:], number) for number, tail in enumerate(TAILS)
]


def test_the_head_is_what_all_rows_begin_with_and_do_not_learn() -> None:
    whole = collate(ROWS, 0)
    batch = with_head(whole, 1)
    assert batch.head_1H is not None
    assert batch.head_1H.tolist() == [HEAD]
    assert batch.tokens_BS.tolist()[1] == [30, 31, 0, 0, 0, 0]
    assert batch.attention_BS.shape == (3, len(HEAD) + 6)
    assert batch.tokens == whole.tokens
    assert count_targets(batch.labels_BS) == count_targets(whole.labels_BS)
    placed, again = batch.with_places(), whole.with_places()
    assert placed.places_N is not None
    assert again.places_N is not None
    assert len(placed.places_N) == len(again.places_N)


def learning(place: int) -> list[Encoded]:
    """The rows, which learn the token at a place of their head, too."""
    return [
        replace(
            row, labels=[row.input_ids[at] if at == place else each for at, each in enumerate(row.labels)]
        )  # type: ignore[arg-type]
        for row in ROWS
    ]


@pytest.mark.parametrize(
    ("rows", "head"),
    [
        (learning(6), HEAD[:5]),  # the token before one that is learnt predicts it
        (learning(7), HEAD[:6]),
        (ROWS[:1], None),
        ([ROWS[0], Encoded([1, *HEAD], [IGNORED] * 7 + [11], 3)], None),
        ([ROWS[0], Encoded(HEAD[:4], [IGNORED] * 3 + HEAD[3:4], 3)], HEAD[:2]),
        ([ROWS[0], ROWS[0]], [*HEAD]),
    ],
    ids=["learnt", "learnt behind it", "one row", "none", "a short row", "the same row"],
)
def test_nothing_that_predicts_is_in_the_head(rows: list[Encoded], head: list[int] | None) -> None:
    found = with_head(collate(rows, 0), 1).head_1H
    assert (None if found is None else found[0].tolist()) == head


def test_what_saves_little_is_left_as_it_is() -> None:
    batch = collate(ROWS, 0)
    assert with_head(batch) is batch
    assert with_head(collate(ROWS * 10, 0)).head_1H is not None


def gradients(model: nn.Module, batch: Batch, method_name: str) -> tuple[Tensor, list[Tensor]]:
    layers = {
        name: module.weight
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "v_proj", "down_proj", "c_attn", "c_fc", "c_proj", "o_proj", "qkv_proj"))
        and isinstance(getattr(module, "weight", None), nn.Parameter)
    }
    assert layers
    turned = "c_fc" in " ".join(layers)  # Conv1D keeps its weight as [I, O]
    method = METHODS[method_name].build()
    method.attach(
        model, {name: choose(w.detach().T if turned else w.detach(), 2) for name, w in layers.items()}
    )
    loss, _ = token_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), [p.grad for p in method.parameters(model) if p.grad is not None]


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": pico_llama,
    "llama eager": lambda: pico_llama(attn_implementation="eager"),
    "tied": lambda: pico_llama(tied=True),
    "gpt2": pico_gpt2,
    **{
        name: lambda name=name: tiny(name) for name in ("qwen2", "qwen3", "phi3", "gemma", "olmo2", "mixtral")
    },  # type: ignore[misc]
}


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_rows_by_themselves(family: str) -> None:
    whole = collate(ROWS, 0)
    loss, expected = gradients(FAMILIES[family](), whole, "neuroada")
    shared, found = gradients(FAMILIES[family](), with_head(whole, 1), "neuroada")
    torch.testing.assert_close(shared, loss, rtol=1e-5, atol=1e-5)
    assert len(found) == len(expected) > 0
    assert any(float(each.abs().max()) > 0 for each in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "mask"])
def test_other_methods_learn_the_same(method: str) -> None:
    whole = collate(ROWS, 0)
    loss, expected = gradients(pico_llama(), whole, method)
    shared, found = gradients(pico_llama(), with_head(whole, 1), method)
    torch.testing.assert_close(shared, loss, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_can_pass(dtype: torch.dtype) -> None:
    for model in (pico_llama(), pico_gpt2(), tiny("qwen3_moe")):
        check_heads(model.to(dtype), ROWS, 0)


def test_models_that_cannot_are_refused() -> None:
    for model, why in (
        (tiny("mistral", sliding_window=4), "keeps more of a text than keys and values"),
        (tiny("lfm2", layer_types=["conv", "full_attention"]), "keeps more of a text than keys and values"),
        (pico_gpt2(resid_pdrop=0.1), "drops entries at random"),
        (pico_llama(attention_dropout=0.1), "drops entries at random"),
    ):
        with pytest.raises(ModelError, match=why) as caught:
            check_heads(model, ROWS, 0)
        assert "set train.share_prefix: false" in caught.value.line()


def test_blocks_below_the_lowest_adapted_layer_get_no_backward_pass() -> None:
    """Nothing below asks for a gradient, so autograd never goes there."""
    model = pico_llama(num_hidden_layers=3)
    method = METHODS["neuroada"].build()
    name = "model.layers.1.self_attn.q_proj"
    method.attach(model, {name: choose(model.get_submodule(name).weight.detach(), 2)})
    token_loss(model, collate(ROWS, 0))  # tries once what the model does to its logits
    asks: list[bool] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, given: asks.append(given[0].requires_grad))
    for batch in (collate(ROWS, 0), with_head(collate(ROWS, 0), 1)):
        asks.clear()
        loss, _ = token_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        count = len(asks) // 3
        assert asks == [False, False, True] * count, "the first block, and the second block's own input"


def test_a_model_whose_routers_draw_is_refused_and_draws_nothing_of_the_run() -> None:
    """In evaluation, where the losses are compared, PhiMoE's do not."""
    model = tiny("phimoe", attention_dropout=0.0)
    before = torch.get_rng_state()
    with pytest.raises(ModelError, match="routes tokens at random, which rows with one prefix"):
        check_heads(model, ROWS, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    check_heads(tiny("mixtral", attention_dropout=0.0), ROWS, 0)
