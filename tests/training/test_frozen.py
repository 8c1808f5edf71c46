"""The watch sees whatever moves but the selection."""

from __future__ import annotations

import pytest
import torch
from conftest import pico_gpt2, pico_llama
from torch import nn

from neuroada_cli.errors import NumericsError
from neuroada_cli.methods import METHODS
from neuroada_cli.training.frozen import FrozenWatch

Q = "model.layers.1.self_attn.q_proj"
C = "transformer.h.0.attn.c_attn"  # GPT-2's transposed layer, 32 inputs and 96 outputs


def watched(method_name: str, gpt2: bool = False) -> tuple[nn.Module, FrozenWatch, str]:
    model, name, outputs = (pico_gpt2(), C, 96) if gpt2 else (pico_llama(), Q, 32)
    indices = {name: torch.arange(outputs, dtype=torch.int32)[:, None] % 32}
    METHODS[method_name]().attach(model, indices)
    return model, FrozenWatch(model, indices), name


@pytest.mark.parametrize("method_name", ["neuroada", "mask"])
@pytest.mark.parametrize("gpt2", [False, True])
def test_selected_entries_may_move(method_name: str, gpt2: bool) -> None:
    model, watch, name = watched(method_name, gpt2)
    weight = model.get_parameter(f"{name}.weight")
    with torch.no_grad():
        for o in range(weight.shape[1] if gpt2 else weight.shape[0]):
            weight[(o % 32, o) if gpt2 else (o, o % 32)] += 1
    watch.check()


@pytest.mark.parametrize("method_name", ["neuroada", "mask"])
@pytest.mark.parametrize("gpt2", [False, True])
def test_decay_over_the_rest_of_a_target_is_seen(method_name: str, gpt2: bool) -> None:
    model, watch, name = watched(method_name, gpt2)
    with torch.no_grad():
        model.get_parameter(f"{name}.weight").mul_(1 - 1e-6)
    with pytest.raises(NumericsError, match=r"weight: frozen weights changed") as caught:
        watch.check()
    assert caught.value.exit_code == 5


def test_a_frozen_norm_or_embedding_that_moves_is_named() -> None:
    for name in ("model.norm.weight", "model.embed_tokens.weight"):
        model, watch, _ = watched("neuroada")
        watch.check()
        with torch.no_grad():
            model.get_parameter(name).add_(1e-3)
        with pytest.raises(NumericsError, match=name):
            watch.check()


def test_what_trains_in_full_is_not_watched() -> None:
    model = pico_llama()
    METHODS["full"]().attach(model, {})
    watch = FrozenWatch(model, {})
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    watch.check()
