"""Layers of the PEFT plug-in against a dense oracle, whatever happens between forward and backward pass.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuroada_cli.delta.quantized import dequantize

pytest.importorskip("peft")
from peft import PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

from neuroada_cli.peft_plugin import NeuroAdaConfig, NeuroAdaLinear

INPUTS, OUTPUTS, K = 64, 32, 3


class Two(nn.Module):
    """Two layers in a row, so that gradients of inputs matter."""

    def __init__(self, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = make(INPUTS, OUTPUTS), make(OUTPUTS, INPUTS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


def conv1d(inputs: int, outputs: int) -> nn.Module:
    return Conv1D(outputs, inputs)


MAKERS: dict[str, Callable[[int, int], nn.Module]] = {"linear": nn.Linear, "conv1d": conv1d}


def base(kind: str = "linear") -> Two:
    torch.manual_seed(0)
    model = Two(MAKERS[kind])
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model


def under(model: nn.Module, *names: str, k: int = K) -> Any:
    """A model with adapters of random values; the first is the active one."""
    names = names or ("default",)
    config = {"k": k, "target_modules": ["first", "second"]}
    found = get_peft_model(model, NeuroAdaConfig(**config), adapter_name=names[0])
    for name in names[1:]:
        found.add_adapter(name, NeuroAdaConfig(criterion="random", **config))
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(number)
        for layer in layers(found):
            values = layer.neuroada_values[name]
            values.data.copy_(torch.randn(values.shape, generator=generator))
    return found


def layers(model: nn.Module) -> list[NeuroAdaLinear]:
    return [module for module in model.modules() if isinstance(module, NeuroAdaLinear)]


def dense(model: Two, peft_model: Any, *names: str) -> Two:
    """The base with the adapters' deltas in its weights, as plain parameters."""
    oracle = copy.deepcopy(model)
    for part in ("first", "second"):
        layer = peft_model.base_model.model.get_submodule(part)
        weight = oracle.get_submodule(part).weight
        weight.data += sum(layer.get_delta_weight(name) for name in names)
        weight.requires_grad_()
    return oracle


X = torch.randn(7, INPUTS, generator=torch.Generator().manual_seed(9))


def gradients(model: Any, x_TI: Tensor = X) -> list[Tensor]:
    model.zero_grad()
    model(x_TI).square().sum().backward()
    return [layer.neuroada_values["default"].grad.clone() for layer in layers(model)]


@pytest.mark.parametrize("kind", MAKERS)
def test_outputs_and_gradients_are_those_of_the_dense_sum(kind: str) -> None:
    plain = base(kind)
    model = under(copy.deepcopy(plain))
    oracle = dense(plain, model, "default")
    x_TI, reference_TI = X.clone().requires_grad_(), X.clone().requires_grad_()
    model(x_TI).square().sum().backward()
    oracle(reference_TI).square().sum().backward()
    torch.testing.assert_close(model(X), oracle(X))
    torch.testing.assert_close(x_TI.grad, reference_TI.grad)
    for layer, name in zip(layers(model), ("first", "second"), strict=True):
        grad_OI = layer.layout.rows(oracle.get_submodule(name).weight.grad)
        expected_OK = grad_OI.gather(1, layer.neuroada_indices["default"].long())
        torch.testing.assert_close(layer.neuroada_values["default"].grad, expected_OK)


def disabled(model: Any) -> None:
    with torch.no_grad(), model.disable_adapter():
        model(X)


def other(model: Any) -> None:
    model.set_adapter("other")
    with torch.no_grad():
        model(X)
    model.set_adapter("default")


def stored(model: Any) -> None:
    model.state_dict()


def evaluated(model: Any) -> None:
    with torch.inference_mode():
        model.eval()(X)
    model.train()


@pytest.mark.parametrize("between", [disabled, other, stored, evaluated])
def test_what_runs_between_forward_and_backward_changes_no_gradient(between: Callable[[Any], None]) -> None:
    """DPO's reference model is the same model with its adapters off, between the two passes."""
    model = under(base(), "default", "other")
    expected = gradients(model)
    model.zero_grad()
    loss = model(X).square().sum()
    between(model)
    loss.backward()
    assert all(
        torch.equal(layer.neuroada_values["default"].grad, grad_OK)
        for layer, grad_OK in zip(layers(model), expected, strict=True)
    )
    assert all(layer.neuroada_values["other"].grad is None for layer in layers(model))


def test_gradients_pass_through_disabled_adapters_to_the_input() -> None:
    plain = base()
    model = under(copy.deepcopy(plain))
    x_TI, reference_TI = X.clone().requires_grad_(), X.clone().requires_grad_()
    with model.disable_adapter():
        loss = model(x_TI).square().sum()
    model(X)  # folds the adapters in again
    loss.backward()
    plain(reference_TI).square().sum().backward()
    torch.testing.assert_close(x_TI.grad, reference_TI.grad)


def test_values_that_are_set_behind_torchs_back_are_used() -> None:
    """Optimizers that step raw memory (bitsandbytes) leave no trace in a tensor's version."""
    model = under(base())
    for training in (True, False):
        model.train(training)
        model(X)
        for layer in layers(model):
            layer.neuroada_values["default"].data.numpy()[:] += 0.5
        expected = dense(base(), model, "default")(X)
        if training:
            model(X)
            torch.testing.assert_close(model(X), expected)
        else:  # a forward that trains may come before: it leaves nothing behind that is taken for known
            with torch.no_grad():
                torch.testing.assert_close(model(X), expected)


def test_values_changed_between_forward_and_backward_are_an_error() -> None:
    model = under(base())
    loss = model(X).sum()
    with torch.no_grad():
        layers(model)[0].neuroada_values["default"].add_(1)
    with pytest.raises(RuntimeError, match="changed between a forward"):
        loss.backward()


def test_the_base_is_restored_to_the_bit() -> None:
    plain = base()
    weights = {name: tensor.clone() for name, tensor in plain.state_dict().items()}

    def is_base(found: dict[str, Tensor]) -> bool:
        stripped = {
            name.replace("base_model.model.", "").replace("base_layer.", ""): t for name, t in found.items()
        }
        return all(torch.equal(stripped[name], tensor) for name, tensor in weights.items())

    model = under(plain, "default", "other")
    model(X)
    assert is_base(model.state_dict())
    with model.disable_adapter():
        assert torch.equal(model(X), base()(X))
    model(X)
    assert is_base(model.unload().state_dict())


def test_two_adapters_at_once_are_one_rounding_of_their_sum() -> None:
    plain = base().to(torch.bfloat16)
    model = under(copy.deepcopy(plain), "default", "other")
    model.base_model.set_adapter(["default", "other"])
    x_TI = X.bfloat16()
    with torch.no_grad():
        y_TO = model(x_TI)
    for name in ("first", "second"):
        layer = model.base_model.model.get_submodule(name)
        total_OI = layer.get_delta_weight("default") + layer.get_delta_weight("other")
        weight = plain.get_submodule(name).weight
        weight.data = (weight.float() + total_OI).bfloat16()
    assert torch.equal(y_TO, plain(x_TI))
    model(x_TI).float().sum().backward()
    assert all(
        layer.neuroada_values[n].grad is not None for layer in layers(model) for n in ("default", "other")
    )


def test_switching_and_deleting() -> None:
    plain = base()
    model = under(copy.deepcopy(plain), "default", "other")
    expected = {name: dense(plain, model, name)(X) for name in ("default", "other")}
    for name in ("other", "default", "other"):
        model.set_adapter(name)
        torch.testing.assert_close(model(X), expected[name])
    model.delete_adapter("other")
    torch.testing.assert_close(model(X), expected["default"])


def test_merge_and_unmerge_are_exact() -> None:
    model = under(base().to(torch.bfloat16), "default", "other")
    x_TI = X.bfloat16()
    with torch.no_grad():
        tuned, plain = model(x_TI), base().to(torch.bfloat16)(x_TI)
        model.merge_adapter()
        assert torch.equal(model(x_TI), tuned)
        model.merge_adapter(["other"])
        both = model(x_TI)
        model.unmerge_adapter()
        assert torch.equal(model(x_TI), tuned)
        model.base_model.set_adapter(["default", "other"])
        assert torch.equal(model(x_TI), both)
        with model.disable_adapter():
            assert torch.equal(model(x_TI), plain)
        merged = model.merge_and_unload(safe_merge=True)
    assert type(merged.first) is nn.Linear
    assert torch.equal(merged(x_TI), both)


def test_a_merge_that_is_not_finite_is_refused_where_that_was_asked_for() -> None:
    model = under(base())
    layers(model)[0].neuroada_values["default"].data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)


def test_under_autocast_it_trains_as_the_dense_sum_does() -> None:
    plain = base()
    model = under(copy.deepcopy(plain))
    oracle = dense(plain, model, "default")
    x_TI = X.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = model(x_TI).float().square().sum(), oracle(X).float().square().sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    layer = layers(model)[0]
    grad_OK = oracle.first.weight.grad.gather(1, layer.neuroada_indices["default"].long())
    torch.testing.assert_close(layer.neuroada_values["default"].grad, grad_OK, rtol=0.05, atol=0.05)
    assert x_TI.grad is not None
    assert x_TI.grad.dtype == torch.float32


def test_a_model_that_is_cast_while_adapters_are_folded_in() -> None:
    plain = base()
    model = under(copy.deepcopy(plain))
    model(X)
    model.to(torch.bfloat16)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(X.bfloat16()), plain.to(torch.bfloat16)(X.bfloat16()))


def test_recomputing_gives_the_same_gradients() -> None:
    from torch.utils.checkpoint import checkpoint

    model = under(base())
    expected = gradients(model)
    for reentrant in (True, False):
        model.zero_grad()
        x_TI = X.clone().requires_grad_()
        y: Any = checkpoint(model, x_TI, use_reentrant=reentrant)
        y.square().sum().backward()
        found = [layer.neuroada_values["default"].grad for layer in layers(model)]
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_quantised_layers_stay_packed_and_train_as_the_dequantised_ones(kind: str) -> None:
    bnb = pytest.importorskip("bitsandbytes")

    def packed(inputs: int, outputs: int) -> nn.Module:
        plain = nn.Linear(inputs, outputs).to(torch.bfloat16)
        if kind == "int8":
            layer = bnb.nn.Linear8bitLt(inputs, outputs, has_fp16_weights=False)
        else:
            layer = bnb.nn.Linear4bit(inputs, outputs, compute_dtype=torch.bfloat16, quant_type=kind)
        layer.load_state_dict(plain.state_dict())
        layer.bias.data = layer.bias.data.to(torch.bfloat16)
        return layer.to("cpu")

    torch.manual_seed(0)
    plain = Two(packed)
    weights = {name: dequantize(plain.get_submodule(name), torch.bfloat16) for name in ("first", "second")}
    model = under(plain)
    x_TI = X.bfloat16()
    oracle = Two(nn.Linear).to(torch.bfloat16)
    for name in ("first", "second"):
        layer = model.base_model.model.get_submodule(name)
        total_OI = (weights[name].float() + layer.get_delta_weight("default")).bfloat16()
        oracle.get_submodule(name).weight.data = total_OI
        oracle.get_submodule(name).bias.data = layer.base_layer.bias.data
    assert torch.equal(model(x_TI), oracle(x_TI))
    grads = gradients(model, x_TI)
    oracle(x_TI).square().sum().backward()
    for layer, name, grad_OK in zip(layers(model), ("first", "second"), grads, strict=True):
        expected_OK = oracle.get_submodule(name).weight.grad.float()
        expected_OK = expected_OK.gather(1, layer.neuroada_indices["default"].long())
        assert (grad_OK - expected_OK).norm() < 0.02 * expected_OK.norm()
    model.merge_adapter()
    assert torch.equal(model(x_TI), oracle(x_TI))
    merged = model.merge_and_unload()
    assert type(merged.first) is nn.Linear
    assert merged.first.weight.dtype == torch.bfloat16
    assert torch.equal(merged(x_TI), oracle(x_TI))


def test_rows_of_a_batch_cannot_have_adapters_of_their_own() -> None:
    model = under(base(), "default", "other")
    with pytest.raises(ValueError, match="all rows of a batch"):
        model.base_model.model.first(X, adapter_names=["default"] * len(X))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(OUTPUTS, INPUTS), nn.Linear(INPUTS, OUTPUTS, bias=False)
        self.head.weight = self.table.weight


class Rounding(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).round()


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        (Tied(), {"target_modules": ["head"]}, "head shares its weight with table"),
        (nn.Sequential(nn.Linear(4, 4), Rounding(4, 4)), {"target_modules": ["1"]}, "1 is a Rounding"),
        (nn.Sequential(nn.Embedding(4, 4), nn.ReLU()), {"target_modules": ["0"]}, "0 is a Embedding"),
        (nn.Sequential(nn.Linear(4, 4)), {"target_modules": ["0"], "k": 5}, "0: k=5, but a neuron has 4"),
    ],
)
def test_what_cannot_be_adapted_is_refused(model: nn.Module, config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        get_peft_model(model, NeuroAdaConfig(**config))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"k": 0}, "k=0"),
        ({"criterion": "magnitud"}, "choose magnitude"),
        ({"criterion": "gradient"}, "neuroada select"),
        ({"format": 99}, "format 99"),
        ({"format": 1, "settings": {"method": "lora"}}, "trained by lora"),
        ({"format": 1, "tied": {"lm_head": ["model.embed_tokens"]}}, "other modules use too"),
        ({"format": 1, "target_modules": ["a.q"], "modules_to_save": ["a.q"]}, "bias too"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NeuroAdaConfig(**config)


def test_another_peft_method_on_the_same_layer_is_refused() -> None:
    from peft import LoraConfig

    model = get_peft_model(base(), LoraConfig(r=2, target_modules=["first"]))
    with pytest.raises(ValueError, match="adapted by another PEFT method"):
        get_peft_model(model.base_model.model, NeuroAdaConfig(target_modules=["first"]))
    assert isinstance(model, PeftModel)


class Encoder(nn.Module):
    """torch's own encoder layer: in evaluation it takes the weights of its layers and calls none."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y


def test_whoever_takes_the_weight_without_calling_the_layer_has_the_adapters() -> None:
    torch.manual_seed(0)
    base, x = Encoder(), torch.randn(2, 5, 16)
    with torch.no_grad():
        plain = base.eval()(x)
    model = get_peft_model(base, NeuroAdaConfig(k=2, target_modules=["linear1", "linear2"]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(x).pow(2).mean(dim=(0, 1)).prod().backward()
        optimizer.step()
        with torch.no_grad():
            trained, answered = model.train()(x), model.eval()(x)
            assert (trained - plain).abs().max() > 1e-3
            torch.testing.assert_close(answered, trained)
            with model.disable_adapter():
                assert torch.equal(model(x), plain)
            assert torch.equal(model(x), answered)
    merged = model.merge_and_unload()
    with torch.no_grad():
        assert torch.equal(merged.eval()(x), answered)


def test_a_layer_that_is_never_called_is_refused() -> None:
    with pytest.raises(ValueError, match=r"out_proj would not train: .* leave it out of target_modules"):
        get_peft_model(Encoder(), NeuroAdaConfig(k=2, target_modules=["out_proj"]))
