"""The watch sees whatever moves but the selection."""

from __future__ import annotations

import pytest
import torch
from conftest import pico_gpt2, pico_llama
from torch import nn

from neuroada_cli.delta.layout import Layout
from neuroada_cli.errors import NumericsError
from neuroada_cli.loop import frozen
from neuroada_cli.loop.frozen import FrozenWatch, places, weighted_sum
from neuroada_cli.methods import METHODS

Q = "model.layers.1.self_attn.q_proj"
C = "transformer.h.0.attn.c_attn"  # GPT-2's transposed layer, 32 inputs and 96 outputs


def watched(method_name: str, gpt2: bool = False) -> tuple[nn.Module, FrozenWatch, str]:
    model, name, outputs = (pico_gpt2(), C, 96) if gpt2 else (pico_llama(), Q, 32)
    indices = {name: torch.arange(outputs, dtype=torch.int32)[:, None] % 32}
    METHODS[method_name].build().attach(model, indices)
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
    watch.check_all()


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
    METHODS["full"].build().attach(model, {})
    watch = FrozenWatch(model, {})
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    watch.check()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts of eight rows, as a large tensor has them."""
    monkeypatch.setattr(frozen, "PART_WORDS", 1)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(37, 5), (16, 3), (11,), ()])
def test_every_single_entry_counts(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Also the last ones, which fill no whole word, and a swap of two, which leaves a plain sum as it is."""
    tensor = (torch.arange(torch.Size(shape).numel()) % 50 + 1).view(shape).to(dtype)
    total, flat = weighted_sum(tensor), tensor.view(-1)
    for at in range(len(flat)):
        before = flat[at].clone()
        flat[at] = 0
        assert weighted_sum(tensor) != total
        flat[at] = before
        other = (at + 1) % len(flat)
        if not torch.equal(flat[at], flat[other]):
            flat[[at, other]] = flat[[other, at]]
            assert weighted_sum(tensor) != total
            flat[[at, other]] = flat[[other, at]]
    assert weighted_sum(tensor) == total == weighted_sum(tensor.clone())


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("transposed", [False, True])
def test_exactly_the_chosen_entries_do_not_count(transposed: bool) -> None:
    index_OK = torch.tensor([[0, 3], [2, -1], [1, 6], [4, 5], *[[6, -1]] * 20])
    chosen_N = places(index_OK, Layout(24, 7, transposed), torch.device("cpu"))
    weight_OI = torch.ones(24, 7)
    chosen_OI = torch.zeros(24, 8).scatter_(1, index_OK % 8, 1)[:, :7].bool()
    for o in range(24):
        for i in range(7):
            changed_OI = weight_OI.clone()
            changed_OI[o, i] = 2
            stored = [w.T.contiguous() if transposed else w for w in (weight_OI, changed_OI)]
            same = len({weighted_sum(each, chosen_N) for each in stored}) == 1
            assert same == bool(chosen_OI[o, i])


@pytest.mark.parametrize("method_name", ["neuroada", "mask"])
@pytest.mark.parametrize("gpt2", [False, True])
def test_an_entry_that_no_sample_looks_at_is_seen_at_the_end(method_name: str, gpt2: bool) -> None:
    """Whichever way its sum moves: it is a remainder, so up and down are by chance."""
    for change in (1e-6, -1e-6, 1e-3, -1e-3, 0.5, -0.5):
        model, watch, name = watched(method_name, gpt2)
        weight = model.get_parameter(f"{name}.weight")
        with torch.no_grad():
            weight[3, 2] += (
                change  # o = 3 (2) trains i = 3 (2) only; every fourth (twelfth) entry is a sample
            )
        watch.check()
        with pytest.raises(NumericsError, match=r"weight: frozen weights changed"):
            watch.check_all()
