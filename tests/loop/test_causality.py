"""A model that sees what it is to write is refused before it trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import pico_gpt2, pico_llama
from tiny_families import tiny
from tiny_pictures import pico_paligemma
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from neuroada_cli.data.batch import IGNORED, Encoded
from neuroada_cli.errors import ModelError
from neuroada_cli.loop.causality import check_causality

TOKENS = [5, 9, 12, 7, 30, 2]
ROW = Encoded(TOKENS, [IGNORED] * 3 + TOKENS[3:], row=0)


def xlnet() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "d_model": 32,
        "n_head": 4,
        "d_inner": 48,
        "n_layer": 2,
        "vocab_size": 96,
        "initializer_range": 0.2,
    }
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING["xlnet"](**sizes))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_write_from_left_to_right_pass_and_are_left_as_they_were(dtype: torch.dtype) -> None:
    for make in (pico_llama, pico_gpt2, lambda: tiny("mixtral")):
        model = make().to(dtype).train()
        before = torch.get_rng_state()
        check_causality(model, ROW, 0)
        assert torch.equal(torch.get_rng_state(), before)
        assert model.training


def test_a_model_that_reads_in_both_directions_is_refused() -> None:
    with pytest.raises(ModelError, match="XLNetLMHeadModel: sees the words that it is to write") as caught:
        check_causality(xlnet(), ROW, 0)
    assert caught.value.exit_code == 4


def test_a_model_that_sees_the_last_token_alone_is_refused_too() -> None:
    class Ahead(type(pico_llama())):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, **given: object) -> object:
            moved = torch.where(input_ids == TOKENS[-1], input_ids, input_ids.roll(-1, 1))
            moved[:, :-2] = input_ids[:, :-2]
            return super().forward(moved, **given)

    model = Ahead(pico_llama().config)
    model.load_state_dict(pico_llama().state_dict())
    with pytest.raises(ModelError, match="the words that it is to write"):
        check_causality(model, ROW, 0)
    check_causality(model, replace(ROW, labels=1), 0)


def test_a_model_that_sees_the_first_token_alone_is_refused_too() -> None:
    """As where what is asked was told to reach one token too far."""

    class Ahead(type(pico_llama())):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, **given: object) -> object:
            moved = input_ids.clone()
            moved[:, 2] = input_ids[:, 3]
            return super().forward(moved, **given)

    model = Ahead(pico_llama().config)
    model.load_state_dict(pico_llama().state_dict())
    with pytest.raises(ModelError, match="the words that it is to write"):
        check_causality(model, ROW, 0)


def test_the_decoder_is_tried_where_there_is_one() -> None:
    class Ahead(T5ForConditionalGeneration):
        def forward(self, decoder_input_ids: torch.Tensor, **given: object) -> object:
            return super().forward(decoder_input_ids=decoder_input_ids.roll(-1, 1), **given)

    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
    config = T5Config(**sizes, decoder_start_token_id=0)
    row = Encoded([3, 4, 5], [IGNORED, *TOKENS], row=0, decoder=[0, *TOKENS])
    torch.manual_seed(0)
    check_causality(T5ForConditionalGeneration(config), row, 0)
    with pytest.raises(ModelError, match="Ahead: sees the words"):
        check_causality(Ahead(config), row, 0)


def test_a_text_read_in_both_directions_needs_to_be_told_what_is_the_answer() -> None:
    """PaliGemma's kinds of tokens: 0 is asked, 1 is answered."""
    model = pico_paligemma()
    with pytest.raises(ModelError, match="PaliGemmaForConditionalGeneration: sees the words"):
        check_causality(model, replace(ROW, told={"token_type_ids": [0] * 6}), 0)
    with pytest.raises(ModelError, match="PaliGemmaForConditionalGeneration: sees the words"):
        check_causality(model, ROW, 0)
    check_causality(model, replace(ROW, told={"token_type_ids": [0] * 3 + [1] * 3}), 0)
