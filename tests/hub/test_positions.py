"""How many tokens a model takes: what its config says, if that bounds anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import pico_bert, pico_gpt2, pico_llama
from tiny_families import tiny
from transformers import RobertaConfig, RobertaForCausalLM, T5Config, T5ForConditionalGeneration, XLNetConfig
from transformers import XLNetLMHeadModel as XLNet

from neuroada_cli import hub
from neuroada_cli.hub.graph import described, rebuilt
from neuroada_cli.hub.positions import positions_of

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
