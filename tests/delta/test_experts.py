"""The experts of a mixture: every row of every matrix is a neuron, however a model computes with them."""

from __future__ import annotations

import copy

import pytest
import torch
from dense_oracle import check
from tiny_families import MIXTURES, tiny
from tiny_run import one_thread  # noqa: F401
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from neuroada_cli.delta.linear import DeltaWeight
from neuroada_cli.delta.mixtures import routers_of
from neuroada_cli.delta.model import attach
from neuroada_cli.delta.targets import find_targets, target_of, targets_of
from neuroada_cli.selection.criteria import choose

K = 2
TOKENS_BS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(7))


def select(model: nn.Module, *include: str) -> dict[str, Tensor]:
    targets = find_targets(model, include or ("all-linear",), heads=["lm_head"])
    indices = {}
    for name, target in targets.items():
        matrices = target.layout.matrices(target.weight.detach())
        indices[name] = torch.cat([choose(weight_OI.float().contiguous(), K) for _, weight_OI in matrices])
    return indices


def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=TOKENS_BS).logits
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("model_type", MIXTURES)
def test_every_way_to_compute_with_experts(model_type: str, way: str, dtype: torch.dtype) -> None:
    model = tiny(model_type).to(dtype)
    if model._can_set_experts_implementation():
        model.set_experts_implementation(way)
    elif way != "eager":
        pytest.skip("has one way of its own")
    indices = select(model)
    assert sum("experts" in name or "weight" not in name for name in indices) >= 2
    # in bf16 a dense gradient sums in bf16 what the sampled one sums in fp32
    check(model, indices, logits, 1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_rows_of_the_layout_are_the_neurons_that_the_model_computes(model_type: str) -> None:
    """A change of one neuron's weights changes nothing but what comes out of it."""
    model = tiny(model_type)
    experts = {name: t for name, t in targets_of(model).items() if t.layout.experts is not None}
    assert len(experts) >= 2
    for name, target in experts.items():
        layout = target.layout
        assert layout.stored_shape == tuple(target.weight.shape)
        index_OK = torch.zeros(layout.shape[0], 1, dtype=torch.int32)
        index_OK[5] = layout.inputs - 1
        marked = torch.zeros_like(target.weight)
        marked.put_(layout.flat(index_OK)[5], torch.ones(1))
        assert layout.rows(marked)[5].tolist() == [0.0] * (layout.inputs - 1) + [1.0]
        assert layout.take(marked, index_OK)[5] == 1
        assert [w[5].tolist() for rows, w in layout.matrices(marked) if rows.start == 0] == [
            layout.rows(marked)[5].tolist()
        ], name


def test_routers_are_frozen_unless_named() -> None:
    for model_type in MIXTURES:
        model = tiny(model_type)
        routers = routers_of(model)
        assert routers, model_type
        assert not routers & set(find_targets(model, heads=["lm_head"]))
        named = [name for name in targets_of(model) if name in routers]
        assert named, model_type
        check(model, select(model, *named), logits, 1e-3)


class Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        old = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in old:
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("way", ["eager", "grouped_mm"])
def test_a_step_makes_nothing_of_the_size_of_all_experts(way: str) -> None:
    model = tiny("mixtral", num_experts=16, num_local_experts=16, num_hidden_layers=1, intermediate_size=64)
    model.set_experts_implementation(way)
    model.lm_head = nn.Identity()
    attach(model, select(model, "gate_up_proj", "down_proj"))
    with Largest() as seen:
        model.model(input_ids=TOKENS_BS[:1, :4]).last_hidden_state.square().sum().backward()
    assert 0 < seen.numel < 16 * 2 * 64 * 32 // 4


def test_experts_without_a_token_get_a_gradient_of_zero() -> None:
    model = tiny("mixtral", num_experts=32, num_local_experts=32, num_hidden_layers=1)
    indices = select(model, "gate_up_proj")
    layers = attach(model, indices)
    model(input_ids=TOKENS_BS[:1, :2]).logits.sum().backward()
    grad_OK = layers["model.layers.0.mlp.experts.gate_up_proj"].delta.grad
    assert grad_OK is not None
    routed = grad_OK.view(32, -1).abs().sum(dim=1) > 0
    assert 1 <= int(routed.sum()) <= 4


def test_recomputed_activations_give_the_same_gradients() -> None:
    model: PreTrainedModel = tiny("qwen3_moe").train()
    indices = select(model)
    again = copy.deepcopy(model)
    layers, recomputed = attach(model, indices), attach(again, indices)
    again.gradient_checkpointing_enable({"use_reentrant": False})
    for each in (model, again):
        logits(each).square().sum().backward()
    for name, layer in layers.items():
        assert torch.equal(layer.delta.grad, recomputed[name].delta.grad), name  # type: ignore[arg-type]


def test_layers_stay_where_they_were() -> None:
    model = tiny("gpt_oss")
    before = dict(model.named_parameters())
    layers = attach(model, select(model, "gate_up_proj", "down_proj"))
    assert all(isinstance(layer, DeltaWeight) for layer in layers.values())
    for name in layers:
        assert target_of(model, name).weight is before[name]
