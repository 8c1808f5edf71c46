"""Attach, train a little, switch, detach: the invariants I1, I2, I6, I7 over whole models."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import pico_bert, pico_llama
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from neuroada_cli.delta import linear
from neuroada_cli.delta.linear import DeltaLinear
from neuroada_cli.delta.model import (
    attach,
    delta_layers,
    detach,
    disabled,
    refold,
    switch,
)
from neuroada_cli.delta.targets import find_targets
from neuroada_cli.loop.recomputing import enable_checkpointing
from neuroada_cli.selection.criteria import choose

TOKENS_BS = torch.randint(3, 96, (3, 11), generator=torch.Generator().manual_seed(7))


def heads(model: nn.Module) -> list[str]:
    return [name for name in ("lm_head", "classifier") if hasattr(model, name)]


def select(model: nn.Module, k: int = 3, **filters: object) -> dict[str, Tensor]:
    targets = find_targets(model, heads=heads(model), **filters)  # type: ignore[arg-type]
    return {
        name: choose(t.weight if isinstance(t.owner, nn.Linear) else t.weight.T, k)
        for name, t in targets.items()
    }


def random_deltas(indices: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {name: torch.randn(index.shape) * 0.1 for name, index in indices.items()}


def dense_logits(model: nn.Module, indices: dict[str, Tensor], deltas: dict[str, Tensor]) -> Tensor:
    """The published way: weight + scatter(delta), dense, through autograd."""
    built = {}
    for name, index_OK in indices.items():
        module = model.get_submodule(name)
        weight, transposed = module.weight, not isinstance(module, nn.Linear)
        weight_OI = weight.T if transposed else weight
        dense_OI = weight_OI.scatter_add(1, index_OK.long(), deltas[name])
        built[f"{name}.weight"] = dense_OI.T if transposed else dense_OI
    return functional_call(model, built, (TOKENS_BS,), tie_weights=True).logits


def test_a_fresh_attachment_gives_exactly_the_base_outputs(pico: PreTrainedModel) -> None:
    expected = pico(TOKENS_BS).logits
    attach(pico, select(pico))
    torch.testing.assert_close(pico(TOKENS_BS).logits, expected, rtol=0, atol=0)


def test_outputs_and_gradients_equal_the_dense_model(pico: PreTrainedModel) -> None:
    indices = select(pico)
    deltas = random_deltas(indices)
    reference = copy.deepcopy(pico).requires_grad_(False)
    trained = {name: delta.clone().requires_grad_() for name, delta in deltas.items()}
    dense = dense_logits(reference, indices, trained)
    dense.square().sum().backward()

    layers = attach(pico, indices, deltas)
    logits = pico(TOKENS_BS).logits
    logits.square().sum().backward()
    torch.testing.assert_close(logits, dense)
    for name, layer in layers.items():
        torch.testing.assert_close(layer.delta.grad, trained[name].grad, rtol=1e-4, atol=1e-4, msg=name)


def test_detaching_restores_every_bit_and_every_module(pico: PreTrainedModel) -> None:
    before = {name: value.clone() for name, value in pico.state_dict().items()}
    modules = dict(pico.named_modules())
    indices = select(pico)
    attach(pico, indices, random_deltas(indices))
    assert any(not torch.equal(pico.state_dict()[name], value) for name, value in before.items())
    detach(pico)
    after = pico.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert dict(pico.named_modules()) == modules


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_selected_entries_change_and_hold_the_rounded_sum(dtype: torch.dtype) -> None:
    model = pico_llama().to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    indices = select(model)
    deltas = random_deltas(indices)
    attach(model, indices, deltas)
    for name, index_OK in indices.items():
        base_OI, weight_OI = before[f"{name}.weight"], model.get_submodule(name).weight
        expected_OI = base_OI.float().scatter_add(1, index_OK.long(), deltas[name]).to(dtype)
        assert torch.equal(weight_OI, expected_OI)
        chosen_OI = torch.zeros_like(base_OI, dtype=torch.bool).scatter_(1, index_OK.long(), True)
        assert torch.equal(weight_OI[~chosen_OI], base_OI[~chosen_OI])
    untouched = before.keys() - {f"{name}.weight" for name in indices}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in untouched)


def test_everything_but_the_deltas_is_frozen(llama: PreTrainedModel) -> None:
    attach(llama, select(llama))
    trainable = {name for name, p in llama.named_parameters() if p.requires_grad}
    assert trainable == {f"{name}.delta" for name in delta_layers(llama)}


def test_switch_and_disabled(llama: PreTrainedModel) -> None:
    base = llama(TOKENS_BS).logits
    indices = select(llama)
    deltas = random_deltas(indices)
    attach(llama, indices, deltas)
    adapted = llama(TOKENS_BS).logits
    with disabled(llama):
        assert torch.equal(llama(TOKENS_BS).logits, base)
    assert torch.equal(llama(TOKENS_BS).logits, adapted)
    switch(llama, {name: torch.zeros_like(delta) for name, delta in deltas.items()})
    assert torch.equal(llama(TOKENS_BS).logits, base)
    for wrong in (
        {},
        dict([*deltas.items()][1:]),
        deltas | {"model.layers.9.mlp.up_proj": torch.ones(48, 3)},
    ):
        with pytest.raises(ValueError, match="only one of"):
            switch(llama, wrong)
        assert torch.equal(llama(TOKENS_BS).logits, base)


def test_a_tied_head_shares_one_delta_with_the_embedding_and_its_gradient() -> None:
    model = pico_llama(tied=True)
    indices = {"lm_head": choose(model.lm_head.weight, 3)}
    deltas = random_deltas(indices)
    reference = copy.deepcopy(model).requires_grad_(False)
    trained = {name: delta.clone().requires_grad_() for name, delta in deltas.items()}
    dense = dense_logits(reference, indices, trained)
    dense.square().sum().backward()

    attach(model, indices, deltas)
    assert model.model.embed_tokens.weight is model.lm_head.weight
    assert list(delta_layers(model)) == ["lm_head"]
    logits = model(TOKENS_BS).logits
    logits.square().sum().backward()
    torch.testing.assert_close(logits, dense)
    torch.testing.assert_close(model.lm_head.delta.grad, trained["lm_head"].grad, rtol=1e-4, atol=1e-3)
    detach(model)
    assert model.model.embed_tokens.weight is model.lm_head.weight


def test_gradient_checkpointing_gives_the_same_gradients(llama: PreTrainedModel) -> None:
    llama.train()
    layers = attach(llama, select(llama))
    llama(TOKENS_BS).logits.square().sum().backward()
    plain = {name: layer.delta.grad.clone() for name, layer in layers.items() if layer.delta.grad is not None}
    llama.zero_grad()
    enable_checkpointing(llama)
    llama(TOKENS_BS).logits.square().sum().backward()
    assert len(plain) == len(layers)
    for name, layer in layers.items():
        torch.testing.assert_close(layer.delta.grad, plain[name], rtol=0, atol=0)


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_refold_between_forward_and_backward_is_an_error(llama: PreTrainedModel, recomputed: bool) -> None:
    """torch says nothing of weights that change before a layer is computed again."""
    llama.train()
    attach(llama, select(llama))
    if recomputed:
        enable_checkpointing(llama)
    logits = llama(TOKENS_BS).logits
    refold(llama)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_biases_train_when_asked() -> None:
    model = pico_bert()
    reference = copy.deepcopy(model)
    layers = attach(model, select(model))
    name, layer = next(iter(layers.items()))
    assert layer.bias is not None
    layer.bias.requires_grad_(True)
    model(TOKENS_BS).logits.square().sum().backward()
    reference(TOKENS_BS).logits.square().sum().backward()
    expected = reference.get_submodule(name).bias
    torch.testing.assert_close(layer.bias.grad, expected.grad)  # type: ignore[union-attr]


class LargestAllocation(TorchDispatchMode):
    """Records the shape of every new tensor whose storage was not there before."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        old = {
            t.untyped_storage().data_ptr()
            for t in args
            if isinstance(t, Tensor) and t.layout is torch.strided
        }
        out = func(*args, **(kwargs or {}))
        plain = isinstance(out, Tensor) and out.layout is torch.strided
        if plain and out.untyped_storage().data_ptr() not in old:
            self.new.append(tuple(out.shape))
        return out


def test_a_step_allocates_nothing_of_the_size_of_a_weight() -> None:
    outputs, inputs, tokens = 3000, 500, 8
    layer = DeltaLinear.from_base(nn.Linear(inputs, outputs), choose(torch.randn(outputs, inputs), 5))
    x_TI = torch.randn(tokens, inputs, requires_grad=True)
    with LargestAllocation() as seen:
        layer(x_TI).square().sum().backward()
        layer.refold()
    largest = max(torch.Size(shape).numel() for shape in seen.new)
    assert layer.delta.grad is not None
    assert len(seen.new) > 5
    assert largest < outputs * inputs // 10


def test_the_gradient_asks_for_x_only_while_deltas_train() -> None:
    layer = DeltaLinear.from_base(nn.Linear(6, 4), choose(torch.randn(4, 6), 2))
    layer.delta.requires_grad_(False)
    x_TI = torch.randn(3, 6, requires_grad=True)
    layer(x_TI).sum().backward()
    assert x_TI.grad is not None
    assert layer.delta.grad is None


class TestTargets:
    def test_all_linear_leaves_out_the_heads(self, llama: PreTrainedModel) -> None:
        names = find_targets(llama, heads=["lm_head"])
        assert "lm_head" not in names
        assert len(names) == 2 * 7
        assert "lm_head" in find_targets(llama, ["all-linear", "lm_head"], heads=["lm_head"])

    def test_names_globs_layers_and_exclude(self, llama: PreTrainedModel) -> None:
        assert set(find_targets(llama, ["q_proj"], layers=[1])) == {"model.layers.1.self_attn.q_proj"}
        attention = find_targets(llama, ["model.layers.*.self_attn.*"], ["o_proj"])
        assert {name.rpartition(".")[2] for name in attention} == {"q_proj", "k_proj", "v_proj"}

    @pytest.mark.parametrize(
        ("filters", "message"),
        [
            ({"include": ["q_prj"]}, "did you mean q_proj"),
            ({"include": ["zzz"]}, "matches no linear layer; this model has"),
            ({"exclude": ["zzz"]}, "zzz matches no linear layer"),
            ({"layers": [2]}, r"no block 2; this model has 0\.\.1"),
            ({"include": ["q_proj"], "exclude": ["q_proj"]}, "leave no linear layer"),
        ],
    )
    def test_nothing_named_goes_unmatched(
        self, llama: PreTrainedModel, filters: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            find_targets(llama, **filters)  # type: ignore[arg-type]

    def test_attach_refuses_what_does_not_fit_and_leaves_the_model_as_it_was(
        self, llama: PreTrainedModel
    ) -> None:
        modules = dict(llama.named_modules())
        good = select(llama)
        for bad in (
            {"model.layers.9.mlp.up_proj": torch.zeros(4, 1)},
            {"model.norm": torch.zeros(32, 1)},
            {"lm_head": torch.zeros(7, 1)},
            {"lm_head": torch.full((96, 1), 32)},
            {"lm_head": torch.full((96, 1), -2)},
        ):
            with pytest.raises(ValueError, match=next(iter(bad))):
                attach(llama, good | bad)
            assert dict(llama.named_modules()) == modules
        attach(llama, good)
        with pytest.raises(ValueError, match="attached already"):
            attach(llama, good)


def test_the_layer_module_imports_torch_only() -> None:
    assert "transformers" not in vars(linear)


def test_a_weight_that_two_layers_share_is_a_target_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    assert list(find_targets(model, ["*"])) == ["0", "1"]
