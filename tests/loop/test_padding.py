"""Models to which the padding beside a row is text: told in training, and without effect on scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from neuroada_cli.data.batch import Encoded
from neuroada_cli.loop.padding import reads_padding

SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SMALL |= {"num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.4}


def rows_of(*lengths: int) -> list[Encoded]:
    chance = torch.Generator().manual_seed(0)
    made = [torch.randint(5, 250, (length,), generator=chance).tolist() for length in lengths]
    return [Encoded(row=number, input_ids=ids, labels=number % 2) for number, ids in enumerate(made)]


def classifier(name: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL | changes)
    model: nn.Module = getattr(transformers, f"{name}ForSequenceClassification")(config)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "changes", "reads"),
    [
        ("Bert", {}, False),
        ("Roberta", {"pad_token_id": 1}, False),
        ("Electra", {"embedding_size": 32}, False),
        ("Llama", {"pad_token_id": 0}, False),
        ("ModernBert", {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}, False),
        ("FNet", {}, True),
        ("ConvBert", {"embedding_size": 32}, True),
        ("Yoso", {}, True),
    ],
)
def test_it_is_tried(name: str, changes: dict[str, Any], reads: bool) -> None:
    model = classifier(name, **changes)
    assert reads_padding(model, rows_of(9, 40, 20), 0) is reads
    assert not reads_padding(model, rows_of(9, 9), 0), "nothing is padded"
