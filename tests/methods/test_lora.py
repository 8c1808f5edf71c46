"""LoRA and DoRA against their definitions: what a layer computes, which layers, how many numbers train.

O = output neurons, I = inputs, R = rank, T = tokens
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import PICO_MODELS, pico_gpt2, pico_llama
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.delta.layout import is_conv1d, layer_shape
from neuroada_cli.delta.quantized import dequantize
from neuroada_cli.methods import METHODS, Sizes
from neuroada_cli.methods.protocol import Method
from neuroada_cli.recipe.load import recipe_from

pytest.importorskip("peft")
RANK = 3
TARGETS = {
    "llama": [f"model.layers.{n}.{name}" for n in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")],
    "gpt2": [f"transformer.h.{n}.{name}" for n in range(2) for name in ("attn.c_attn", "mlp.c_proj")],
    "bert": ["bert.encoder.layer.0.attention.self.key", "bert.encoder.layer.1.output.dense"],
}
# `peer.alpha` -> what B A is multiplied by
SCALES = {None: 2.0, 6.0: 2.0, 1.5: 0.5}


def adapted(
    name: str, method_name: str, alpha: float | None = None, dropout: float = 0.0
) -> tuple[nn.Module, Method]:
    """A tiny model with the method on it, its parts random: at the start B is 0 and nothing would be seen."""
    model = PICO_MODELS[name]()
    method = METHODS[method_name].build(
        {"rank": RANK, "alpha": alpha, "dropout": dropout, "positions": 7}, seed=5
    )
    method.attach(model, {target: torch.zeros(0) for target in TARGETS[name]})
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters(model):
            parameter.add_(torch.rand_like(parameter))
    return model, method


def parts(layer: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(W [O, I], bias, A [R, I], B [O, R]) of an adapted layer."""
    base = layer.base_layer
    weight_OI = base.weight.T if is_conv1d(base) else base.weight
    return weight_OI, base.bias, layer.lora_A["default"].weight, layer.lora_B["default"].weight


@pytest.mark.parametrize("alpha", SCALES)
@pytest.mark.parametrize("name", TARGETS)
def test_lora_is_w_x_plus_alpha_by_rank_b_a_x(name: str, alpha: float | None) -> None:
    model, _ = adapted(name, "lora", alpha)
    for target in TARGETS[name]:
        layer = model.get_submodule(target)
        weight_OI, bias_O, a_RI, b_OR = parts(layer)
        x_TI = torch.randn(5, weight_OI.shape[1])
        expected_TO = F.linear(x_TI, weight_OI, bias_O) + SCALES[alpha] * x_TI @ a_RI.T @ b_OR.T
        torch.testing.assert_close(layer(x_TI), expected_TO)


@pytest.mark.parametrize("alpha", SCALES)
@pytest.mark.parametrize("name", TARGETS)
def test_dora_is_a_magnitude_times_the_direction_of_the_changed_weight(
    name: str, alpha: float | None
) -> None:
    """W' = m (W + alpha / rank B A) / ||row||; at the start m is the norm of W's rows (arXiv:2402.09353)."""
    model, _ = adapted(name, "dora", alpha)
    for target in TARGETS[name]:
        layer: Any = model.get_submodule(target)
        weight_OI, bias_O, a_RI, b_OR = parts(layer)
        magnitude_O = layer.lora_magnitude_vector["default"].weight.flatten()
        changed_OI = weight_OI + SCALES[alpha] * b_OR @ a_RI
        tuned_OI = magnitude_O[:, None] * changed_OI / changed_OI.norm(dim=1, keepdim=True)
        x_TI = torch.randn(5, weight_OI.shape[1])
        torch.testing.assert_close(layer(x_TI), F.linear(x_TI, tuned_OI, bias_O), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TARGETS)
def test_dora_over_a_neuron_of_zeros_is_refused_and_lora_is_not(name: str) -> None:
    """Its output would be NaN before the first step (findings/dora-row-of-zeros.sh)."""
    target = TARGETS[name][1]
    for method_name, expected in (("lora", None), ("dora", f"only zeros in {target}, row 2, and DoRA")):
        model = PICO_MODELS[name]()
        weight = model.get_submodule(target).weight
        with torch.no_grad():
            (weight.T if is_conv1d(model.get_submodule(target)) else weight)[2] = 0
        method = METHODS[method_name].build({"rank": RANK, "alpha": None, "dropout": 0.0, "positions": 7}, 5)
        refused = pytest.raises(ValueError, match=expected) if expected else contextlib.nullcontext()
        with refused:
            method.attach(model, {name: torch.zeros(0) for name in TARGETS[name]})


@pytest.mark.parametrize("method_name", ["lora", "dora"])
@pytest.mark.parametrize("name", TARGETS)
def test_the_targets_and_nothing_else_are_adapted_in_the_number_that_is_announced(
    name: str, method_name: str
) -> None:
    model, method = adapted(name, method_name)
    found = {n for n, module in model.named_modules() if hasattr(module, "lora_A")}
    assert found == set(TARGETS[name])
    trained = {n for n, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(any(n.startswith(f"{target}.lora_") for target in TARGETS[name]) for n in trained)
    shapes = [layer_shape(PICO_MODELS[name]().get_submodule(target)) for target in TARGETS[name]]
    magnitudes = sum(outputs for outputs, _ in shapes) if method_name == "dora" else 0
    expected = sum(RANK * (outputs + inputs) for outputs, inputs in shapes) + magnitudes
    assert sum(p.numel() for p in method.parameters(model)) == expected
    sizes = Sizes(dict(zip(TARGETS[name], shapes, strict=True)), rank=RANK)
    assert METHODS[method_name].count(sizes) == expected


def test_a_layer_whose_name_only_ends_like_a_target_s_stays_as_it_is() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj, self.inner = nn.Linear(4, 4), nn.Sequential()
            self.inner.proj, self.inner.axproj = nn.Linear(4, 4), nn.Linear(4, 4)

    model = Nested()
    METHODS["lora"].build({"rank": 2}).attach(model, {"proj": torch.zeros(0)})
    assert [name for name, module in model.named_modules() if hasattr(module, "lora_A")] == ["proj"]


@pytest.mark.parametrize("method_name", ["lora", "dora"])
def test_dropout_is_the_recipe_s_and_only_of_the_adapter_s_input(method_name: str) -> None:
    model, _ = adapted("llama", method_name, dropout=0.4)
    for target in TARGETS["llama"]:
        layer: Any = model.get_submodule(target)
        assert layer.lora_dropout["default"].p == 0.4
        if method_name == "dora":
            continue
        weight_OI, bias_O, a_RI, b_OR = parts(layer)
        x_TI = torch.randn(5, weight_OI.shape[1])
        plain_TO = layer(x_TI)
        layer.train()
        torch.manual_seed(3)
        dropped_TO = layer(x_TI)
        torch.manual_seed(3)
        kept_TI = F.dropout(x_TI, 0.4)
        expected_TO = F.linear(x_TI, weight_OI, bias_O) + 2 * kept_TI @ a_RI.T @ b_OR.T
        torch.testing.assert_close(dropped_TO, expected_TO)
        assert not torch.allclose(dropped_TO, plain_TO)


@pytest.mark.parametrize("method_name", ["lora", "dora"])
@pytest.mark.parametrize("make", [pico_llama, pico_gpt2])
def test_it_starts_at_the_base_and_at_the_seed_s_own_draw(make: Any, method_name: str) -> None:
    tokens_BS = torch.arange(3, 20)[None]
    targets = {target: torch.zeros(0) for target in TARGETS["llama" if make is pico_llama else "gpt2"]}
    started = []
    for stream in (1, 99):
        torch.manual_seed(stream)
        model = make()
        torch.manual_seed(stream)
        before = torch.get_rng_state()
        method = METHODS[method_name].build({"rank": RANK}, seed=5)
        method.attach(model, targets)
        assert torch.equal(torch.get_rng_state(), before)
        torch.testing.assert_close(model(input_ids=tokens_BS).logits, make()(input_ids=tokens_BS).logits)
        started.append([p.detach().clone() for p in method.parameters(model)])
    assert all(torch.equal(one, other) for one, other in zip(*started, strict=True))


def test_a_recipe_says_rank_alpha_and_dropout() -> None:
    recipe = recipe_from({
        "name": "a", "model": {"path": "b"}, "data": {"task": "rte"}, "train": {"method": "lora"},
        "peer": {"rank": RANK, "alpha": 1.5, "dropout": 0.4},
    })  # fmt: skip
    assert recipe.peer is not None
    model, method = pico_llama(), METHODS["lora"].build(recipe.peer.model_dump(), seed=recipe.seed)
    method.attach(model, {target: torch.zeros(0) for target in TARGETS["llama"]})
    layer: Any = model.get_submodule(TARGETS["llama"][0])
    assert layer.scaling["default"] == 1.5 / RANK
    assert layer.lora_dropout["default"].p == 0.4
    assert parts(layer)[2].shape[0] == RANK


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("method_name", ["lora", "dora"])
def test_on_a_quantised_base_it_is_the_same_method_on_the_dequantised_weights(
    method_name: str, kind: str, tmp_path: Path
) -> None:
    """QLoRA (arXiv:2305.14314) and its DoRA; int8 products round their inputs, so they are only near."""
    pytest.importorskip("bitsandbytes")
    pico_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    model = hub.load_model(tmp_path, "causal-lm", "bf16", quantization=kind).model
    method = METHODS[method_name].build({"rank": RANK}, seed=5)
    method.attach(model, {target: torch.zeros(0) for target in TARGETS["llama"]})
    assert {parameter.dtype for parameter in method.parameters(model)} == {torch.float32}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters(model):
            parameter.add_(torch.rand_like(parameter) / 10)
    for target in TARGETS["llama"]:
        layer: Any = model.get_submodule(target)
        weight_OI = dequantize(layer.base_layer, torch.float32)
        a_RI, b_OR = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        tuned_OI = weight_OI + 2 * b_OR @ a_RI
        if method_name == "dora":
            magnitude_O = layer.lora_magnitude_vector["default"].weight.flatten()
            tuned_OI = magnitude_O[:, None] * tuned_OI / tuned_OI.norm(dim=1, keepdim=True)
        x_TI = torch.randn(5, weight_OI.shape[1])
        for _ in range(3):  # what a forward leaves behind does not change the next one
            y_TO = layer(x_TI.bfloat16()).float()
            assert (y_TO - x_TI @ tuned_OI.T).norm() < 0.02 * y_TO.norm()
