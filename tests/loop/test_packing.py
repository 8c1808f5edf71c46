"""Packed rows: one behind the other without padding, the same loss and the same gradients.

S = tokens of all rows together
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from conftest import pico_gpt2, pico_llama
from tiny_families import tiny
from torch import nn
from transformers import LlamaForCausalLM

from neuroada_cli.data.batch import IGNORED, Encoded, collate, pack
from neuroada_cli.errors import ModelError
from neuroada_cli.loop.loss import count_targets, token_loss
from neuroada_cli.loop.packing import check_packing
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.criteria import choose

ROWS = [
    Encoded([5, 6, 7, 8, 9, 10, 11], [IGNORED] * 3 + [8, 9, 10, 11], 4),
    Encoded([20, 21, 22], [IGNORED, 21, 22], 7),
    Encoded([30, 31, 32, 33, 34], [30, 31, 32, 33, 34], 1),  # its first token would be a target of row 7
]


def test_rows_lie_one_behind_the_other() -> None:
    batch = pack(ROWS)
    assert batch.tokens_BS.tolist() == [[5, 6, 7, 8, 9, 10, 11, 20, 21, 22, 30, 31, 32, 33, 34]]
    assert batch.positions_BS is not None
    assert batch.positions_BS.tolist() == [[*range(7), *range(3), *range(5)]]
    assert batch.labels_BS.tolist() == [[-100, -100, -100, 8, 9, 10, 11, -100, 21, 22, -100, 31, 32, 33, 34]]
    assert batch.rows == [4, 7, 1]
    assert count_targets(batch.labels_BS) == count_targets(collate(ROWS, 0).labels_BS)
    moved = batch.to("cpu")
    assert moved.positions_BS is not None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [pico_llama, pico_gpt2])
def test_loss_and_gradients_are_those_of_padded_rows(make: Any, attention: str) -> None:
    found = []
    for batch in (pack(ROWS), collate(ROWS, pad=0)):
        model = make(attn_implementation=attention)
        layers = [
            name for name, m in model.named_modules() if name.endswith(("up_proj", "down_proj", "c_fc"))
        ]
        assert layers
        method = METHODS["neuroada"].build()
        weights = {name: model.get_submodule(name).weight.detach() for name in layers}
        turned = make is pico_gpt2  # Conv1D keeps its weight as [I, O]
        method.attach(model, {name: choose(w.T if turned else w, 2) for name, w in weights.items()})
        loss, targets = token_loss(model, batch)
        loss.backward()
        found.append((loss.detach(), targets, [p.grad for p in method.parameters(model)]))
    (packed, n, grads), (padded, m, expected) = found
    assert n == m
    torch.testing.assert_close(packed, padded)
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [pico_llama, pico_gpt2])
def test_models_that_keep_rows_apart_pass(make: Any, dtype: torch.dtype) -> None:
    model = make().to(dtype).train()
    before = torch.get_rng_state()
    check_packing(model, ROWS)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


class Leaking(LlamaForCausalLM):
    """Positions are looked at, but a mask of its own lets every row see those before it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        length = kwargs["input_ids"].shape[1]
        sees_SS = torch.ones(length, length).tril().bool()
        return super().forward(*args, **kwargs | {"attention_mask": sees_SS[None, None]})

    forward.__signature__ = inspect.signature(LlamaForCausalLM.forward)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_mixes_rows_is_refused(dtype: torch.dtype) -> None:
    model = Leaking(pico_llama().config).to(dtype)
    model.load_state_dict(pico_llama().state_dict())
    with pytest.raises(ModelError, match="does not keep packed rows apart") as caught:
        check_packing(model, ROWS)
    assert "set train.packing: false" in caught.value.line()


class LeakingALittle(Leaking):
    """A part of what the rows before a row would make of it."""

    share = 1.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        own = LlamaForCausalLM.forward(self, *args, **kwargs)
        mixed = super().forward(*args, **kwargs).logits
        own.logits = (own.logits.float() + self.share * (mixed - own.logits).float()).to(mixed.dtype)
        return own

    forward.__signature__ = inspect.signature(LlamaForCausalLM.forward)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_a_leak_below_what_shapes_alone_may_change_is_refused(dtype: torch.dtype, share: float) -> None:
    model = LeakingALittle(pico_llama().config).to(dtype)
    model.load_state_dict(pico_llama().state_dict())
    model.share = 0.0
    check_packing(model, ROWS)
    model.share = share
    with pytest.raises(ModelError, match=r"change by .* with the row before it"):
        check_packing(model, ROWS)


def test_a_model_without_positions_is_refused() -> None:
    class Other(nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    with pytest.raises(ModelError, match="takes no position_ids"):
        check_packing(Other(), ROWS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "granitemoe"])
def test_a_mixture_whose_experts_work_on_all_rows_at_once_passes(model_type: str, dtype: torch.dtype) -> None:
    check_packing(tiny(model_type).to(dtype), ROWS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_that_runs_on_into_the_next_row_is_refused(dtype: torch.dtype) -> None:
    model = tiny("lfm2", layer_types=["conv", "full_attention"]).to(dtype)
    with pytest.raises(ModelError, match=r"change by .* with the row before it"):
        check_packing(model, ROWS)
