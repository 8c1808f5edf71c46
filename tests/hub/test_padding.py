"""Which models ask their config for the padding token: decoders that classify, and no encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import pico_bert, pico_gpt2
from tiny_families import SIZES, tiny
from transformers import (
    FunnelConfig,
    FunnelForSequenceClassification,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from neuroada_cli import hub

FUNNEL = FunnelConfig(
    vocab_size=96, d_model=32, d_inner=48, n_head=4, d_head=8, block_sizes=[1, 1], initializer_std=0.5
)
MODELS: dict[str, tuple[PreTrainedModel, bool]] = {
    "gpt2": (GPT2ForSequenceClassification(pico_gpt2().config), True),
    "qwen3": (Qwen3ForSequenceClassification(Qwen3Config(**SIZES)), True),
    "bert": (pico_bert(), False),
    "funnel": (FunnelForSequenceClassification(FUNNEL), False),
    "a writer": (tiny("llama"), False),
}


@pytest.mark.parametrize("name", MODELS)
def test_who_reads_it(name: str, tmp_path: Path) -> None:
    model, reads = MODELS[name]
    assert hub.reads_padding(model) == reads
    model.save_pretrained(tmp_path)
    task = "causal-lm" if name == "a writer" else "sequence-classification"
    graphs = [hub.module_graph(tmp_path, task) for _ in ("looked at", "from the cache")]
    assert [hub.reads_padding(graph) for graph in graphs] == [reads, reads]
