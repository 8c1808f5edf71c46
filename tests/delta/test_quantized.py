"""Deltas over bitsandbytes layers: exact in the compute dtype, K per row of state, no 4-bit rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from neuroada_cli.delta.model import attach, delta_layers, detach, disabled
from neuroada_cli.delta.quantized import QuantizedDeltaLinear, dequantize, keep_layout, round_trip
from neuroada_cli.selection.criteria import choose

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

INPUTS, OUTPUTS, K = 256, 96, 5
KINDS = ["nf4", "fp4", "int8"]


def quantized(kind: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(0)
    dense = nn.Linear(INPUTS, OUTPUTS).to(dtype)
    if kind == "int8":
        layer = bnb.nn.Linear8bitLt(INPUTS, OUTPUTS, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(INPUTS, OUTPUTS, compute_dtype=dtype, quant_type=kind)
    layer.load_state_dict(dense.state_dict())
    layer.bias.data = layer.bias.data.to(dtype)
    return layer.to("cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_gradients_equal_a_dense_layer_on_the_dequantised_weight(kind: str) -> None:
    base = quantized(kind)
    weight_OI = dequantize(base, torch.bfloat16)
    index_OK = choose(weight_OI, K)
    layer = QuantizedDeltaLinear.from_base(base, index_OK)
    layer.delta.data = torch.randn(OUTPUTS, K) * 0.1
    layer.refold()

    trained_OI = weight_OI.float().scatter_add(1, index_OK.long(), layer.delta.detach()).bfloat16()
    trained_OI.requires_grad_()
    x_TI = torch.randn(7, INPUTS, dtype=torch.bfloat16, requires_grad=True)
    reference_TI = x_TI.detach().clone().requires_grad_()
    expected = F.linear(reference_TI, trained_OI, base.bias)
    expected.square().sum().backward()
    y_TO = layer(x_TI)
    y_TO.square().sum().backward()
    torch.testing.assert_close(y_TO, expected, rtol=0, atol=0)
    torch.testing.assert_close(x_TI.grad, reference_TI.grad, rtol=0, atol=0)
    assert trained_OI.grad is not None
    expected_OK = trained_OI.grad.float().gather(1, index_OK.long())
    torch.testing.assert_close(layer.delta.grad, expected_OK, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_attach_train_disable_detach_on_a_model(kind: str) -> None:
    model = nn.Sequential(quantized(kind), nn.ReLU(), nn.Linear(OUTPUTS, 4).bfloat16())
    original = model[0]
    packed = model[0].weight.data.clone()
    x_TI = torch.randn(7, INPUTS, dtype=torch.bfloat16)
    indices = {"0": choose(dequantize(model[0], torch.bfloat16), K), "2": choose(model[2].weight, 2)}
    attach(model, indices)
    fresh = model(x_TI)
    optimizer = torch.optim.SGD([layer.delta for layer in delta_layers(model).values()], lr=1.0)
    losses = []
    for _ in range(8):
        loss = model(x_TI).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for layer in delta_layers(model).values():
            layer.refold()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    with disabled(model):
        assert torch.equal(model(x_TI), fresh)
    assert not torch.equal(model(x_TI), fresh)
    detach(model)
    assert model[0] is original
    assert torch.equal(model[0].weight.data, packed)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("change", ["refold", "restore"])
def test_folding_between_forward_and_backward_is_an_error(change: str, recomputed: bool) -> None:
    base = quantized("nf4")
    layer = QuantizedDeltaLinear.from_base(base, choose(dequantize(base, torch.bfloat16), K))
    layer.refold()
    x = torch.randn(3, INPUTS, dtype=torch.bfloat16, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
    getattr(layer, change)()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(("double", "same"), [(False, True), (True, False)])
def test_quantising_what_was_quantised_keeps_it_only_with_plain_statistics(double: bool, same: bool) -> None:
    """So merged dequantised weights come back from nf4 as they were only where its scales are plain."""

    def round_trip_of(weight_OI: torch.Tensor) -> torch.Tensor:
        layer = bnb.nn.Linear4bit(
            INPUTS, 512, bias=False, compute_dtype=torch.float32, compress_statistics=double, quant_type="nf4"
        )
        layer.load_state_dict({"weight": weight_OI})
        return dequantize(layer.to("cpu"), torch.float32)

    torch.manual_seed(0)
    once = round_trip_of(torch.randn(512, INPUTS) * 0.02)
    again = round_trip_of(once)
    assert bool((once == again).all()) is same
    if same:
        assert torch.equal(round_trip(once, "nf4", torch.float32), once)


def test_eight_bits_on_a_cpu_round_what_goes_in_only_in_evaluation() -> None:
    """So a loss in training is not that of the same rows in evaluation, and a GPU rounds in both."""
    layer = quantized("int8", torch.float32)
    x = torch.randn(7, INPUTS)
    exact = F.linear(x, dequantize(layer, torch.float32), layer.bias)
    torch.testing.assert_close(layer.train()(x), exact, rtol=1e-5, atol=1e-5)
    assert (layer.eval()(x) - exact).abs().max() > 1e-3


def test_a_layer_that_is_not_quantised_yet_is_refused() -> None:
    layer = bnb.nn.Linear4bit(INPUTS, OUTPUTS, quant_type="nf4")
    with pytest.raises(ValueError, match="not quantised yet"):
        dequantize(layer, torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("between", ["evaluation", "dequantising"])
def test_what_runs_between_two_training_steps_changes_no_gradient(kind: str, between: str) -> None:
    """bitsandbytes packs 4-bit weights anew in evaluation, after which no gradient passes the layer."""

    def gradient() -> torch.Tensor:
        x_TI = torch.linspace(-1, 1, 7 * INPUTS, dtype=torch.bfloat16).view(7, INPUTS).requires_grad_()
        layer.train()(x_TI).sum().backward()
        assert x_TI.grad is not None
        return x_TI.grad

    layer = quantized(kind)
    keep_layout(layer)
    before = gradient()
    if between == "evaluation":
        with torch.inference_mode():
            layer.eval()(torch.ones(3, INPUTS, dtype=torch.bfloat16))
    else:
        pytest.importorskip("peft")
        from peft.utils.integrations import dequantize_module_weight

        dequantize_module_weight(layer)
    assert torch.equal(gradient(), before)
    assert torch.equal(dequantize(layer, torch.bfloat16), dequantize(quantized(kind), torch.bfloat16))


def test_a_layer_that_was_packed_for_answers_is_refused() -> None:
    layer = quantized("nf4")
    if not getattr(layer, "support_avx512bf16_for_cpu", False):
        pytest.skip("this processor has no AVX512-BF16, so bitsandbytes packs nothing")
    with torch.inference_mode():
        layer.eval()(torch.ones(3, INPUTS, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="load the model anew"):
        dequantize(layer, torch.bfloat16)
