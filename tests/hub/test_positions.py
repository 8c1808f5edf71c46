"""How many tokens a model takes: what its config says, if that bounds anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import pico_bert, pico_gpt2, pico_llama
from tiny_families import tiny
from tiny_pairs import VOCABULARY, pairs_tokenizer, pico_bart
from tiny_run import tiny_recipe
from transformers import (
    LEDConfig,
    LEDForConditionalGeneration,
    RobertaConfig,
    RobertaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
)
from transformers import XLNetLMHeadModel as XLNet

from neuroada_cli import hub
from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.evaluation.generate import generate
from neuroada_cli.evaluation.streaming import answer
from neuroada_cli.hub.graph import described, rebuilt
from neuroada_cli.hub.positions import answer_positions_of, positions_of
from neuroada_cli.training.preflight import check

ROBERTA = RobertaConfig(
    vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=66, is_decoder=True, pad_token_id=1,
)  # fmt: skip
MODELS = {
    "llama": (pico_llama, 64),
    "gpt2": (pico_gpt2, 64),
    "bert": (pico_bert, 64),
    "roberta": (lambda: RobertaForCausalLM(ROBERTA), 64),
    "mamba": (lambda: tiny("mamba", max_position_embeddings=None), None),
    "bloom": (lambda: tiny("bloom", max_position_embeddings=-1), None),
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, vocab_size=96)
        ),
        None,
    ),
    "xlnet": (lambda: XLNet(XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16, vocab_size=96)), None),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_and_its_graph_say_the_same(name: str) -> None:
    make, expected = MODELS[name]
    model = make()
    assert positions_of(model) == expected
    assert positions_of(rebuilt(described(model))) == expected


def test_a_bound_of_minus_one_stops_no_row(tmp_path: Path) -> None:
    with torch.device("cpu"):
        tiny("bloom", max_position_embeddings=-1).save_pretrained(tmp_path)
    assert hub.open_base(tmp_path).positions is None


def test_a_decoder_with_a_bound_of_its_own(tmp_path: Path) -> None:
    """LED names none of its bounds as others do."""
    model = LEDForConditionalGeneration(
        LEDConfig(
            vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
            decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, attention_window=8,
            max_encoder_position_embeddings=256, max_decoder_position_embeddings=8, pad_token_id=0,
        )
    )  # fmt: skip
    for each in (model, rebuilt(described(model))):
        assert (positions_of(each), answer_positions_of(each)) == (256, 8)
    tokenizer = pairs_tokenizer("bart")
    assert len(generate(model, tokenizer, [[5] * 256], 7)) == 1
    with pytest.raises(DataError, match="257 tokens, and the encoder takes 256"):
        generate(model, tokenizer, [[5] * 257], 7)
    with pytest.raises(DataError, match="do not fit into the decoder's 8"):
        generate(model, tokenizer, [[5] * 256], 8)
    answer(model, tokenizer, [5] * 256, 50)
    with pytest.raises(DataError, match="the model takes 256"):
        answer(model, tokenizer, [5] * 257, 5)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(RecipeError, match="the model's decoder takes 8"):
        check(tiny_recipe(tmp_path / "base", tmp_path / "run"), False)


def test_a_bound_of_both_sides_holds_the_answer_that_is_streamed() -> None:
    model = pico_bart(max_position_embeddings=24, eos_token_id=3, forced_eos_token_id=None)
    assert answer(model, pairs_tokenizer("bart"), [5] * 24, 50).tokens <= 23
