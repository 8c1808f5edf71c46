"""Weights that a model's own code computes with: the base's bits, the dense model's gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import pico_llama
from dense_oracle import check
from tiny_run import one_thread  # noqa: F401
from torch import Tensor, nn
from transformers import (
    DebertaConfig,
    DebertaForSequenceClassification,
    FalconConfig,
    FalconForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from neuroada_cli.delta.linear import DeltaLinear, DeltaWeight
from neuroada_cli.delta.model import attach, delta_layers, refold
from neuroada_cli.delta.targets import find_targets, target_of
from neuroada_cli.selection.criteria import choose

K = 3
TOKENS_BS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(7))


def select(model: nn.Module, *names: str) -> dict[str, Tensor]:
    targets = {name: target_of(model, name) for name in names} or find_targets(model, heads=["lm_head"])
    return {n: choose(t.layout.rows(t.weight.detach()).float(), K) for n, t in targets.items()}


class Own(nn.Linear):
    """A linear layer that computes with its weight as `way` says."""

    way: Callable[[Own, Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return type(self).way(self, x)


def _in_place(self: Own, x: Tensor) -> Tensor:
    y = F.linear(x, self.weight, self.bias).view(2, -1, 4, 2)
    y += 1
    return y.flatten(2)


WAYS: dict[str, Callable[[Own, Tensor], Tensor]] = {
    "linear": lambda self, x: F.linear(input=x, weight=self.weight, bias=self.bias),
    "matmul T": lambda self, x: x @ self.weight.T + self.bias,
    "matmul mT": lambda self, x: torch.matmul(x, self.weight.mT),
    "transpose": lambda self, x: x.matmul(self.weight.transpose(0, 1)),
    "contiguous": lambda self, x: x.matmul(self.weight.t().contiguous()),
    "left": lambda self, x: (self.weight @ x.transpose(1, 2)).transpose(1, 2),
    "addmm": lambda self, x: torch.addmm(self.bias, x.reshape(-1, 6), self.weight.t()).view(2, 5, 8),
    "addmm scaled": lambda self, x: torch.addmm(self.bias, x.reshape(-1, 6), self.weight.t(), alpha=2),
    "other type": lambda self, x: F.linear(x.double(), self.weight.double()).to(x.dtype),
    "type": lambda self, x: F.linear(x.type(torch.float64), self.weight.type(torch.float64)),
    "two uses": lambda self, x: F.linear(torch.tanh(F.linear(x, self.weight)) @ self.weight, self.weight),
    "einsum": lambda self, x: torch.einsum("bti,oi->bto", x, self.weight),
    "slices": lambda self, x: torch.cat([F.linear(x, part) for part in self.weight.chunk(2)], -1),
    "scaled": lambda self, x: F.linear(x, self.weight * 2 / self.weight.detach().norm()),
    "concatenated": lambda self, x: F.linear(x, torch.cat([self.weight, self.weight])),
    "vector": lambda self, x: torch.stack([self.weight @ row for row in x.reshape(-1, 6)]),
    "changed in place": _in_place,
    "embedding": lambda self, x: F.embedding(torch.tensor([[0, 3, 3], [7, 1, 0]]), self.weight, 1) + x[:, :3],
    "checked": lambda self, x: F.linear(x, self.weight) if self.weight.shape == (8, 6) else x,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_use_a_weight(way: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kind = type("Kind", (Own,), {"way": staticmethod(WAYS[way])})
    model = nn.Sequential(nn.Linear(6, 6), kind(6, 8)).to(dtype)
    x = torch.randn(2, 5, 6, dtype=dtype)
    check(model, select(model, "0", "1"), lambda m: m(x), 1e-4 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("way", ["matmul T", "left", "two uses", "type"])
def test_sampled_ways_make_no_gradient_of_the_weights_size(way: str) -> None:
    kind = type("Kind", (Own,), {"way": staticmethod(WAYS[way])})
    model = nn.Sequential(kind(6, 8))
    attach(model, select(model, "0"))
    largest = 0

    def note(grad: Tensor) -> None:
        nonlocal largest
        largest = max(largest, grad.numel())

    y = model(torch.randn(1, 2, 6, requires_grad=True))
    for node in graph(y):
        for value, _ in node.next_functions:
            if value is not None and hasattr(value, "register_hook"):
                value.register_hook(
                    lambda ins, outs: [note(g) for g in (*ins, *outs) if g is not None] and None
                )
    y.sum().backward()
    assert 0 < largest < 8 * 6


def graph(y: Tensor) -> list:  # type: ignore[type-arg]
    nodes, todo = [], [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.append(node)
            todo += [n for n, _ in node.next_functions]
    return nodes


def falcon() -> PreTrainedModel:
    config = FalconConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bias=True, alibi=False,
        hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return FalconForCausalLM(config).eval()


def mamba() -> PreTrainedModel:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=8, use_mambapy=False
    )
    return MambaForCausalLM(config).eval()


def deberta() -> PreTrainedModel:
    config = DebertaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        relative_attention=True, pos_att_type=["c2p", "p2c"], max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return DebertaForSequenceClassification(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [falcon, mamba, deberta])
def test_models_whose_own_code_reads_their_weights(
    make: Callable[[], PreTrainedModel], dtype: torch.dtype
) -> None:
    model = make().to(dtype)
    check(
        model,
        select(model),
        lambda m: m(input_ids=TOKENS_BS).logits,
        1e-3 if dtype == torch.float32 else 6e-2,
    )


def test_only_plain_forwards_are_replaced() -> None:
    model = falcon()
    layers = attach(model, select(model))
    assert {type(layer) for layer in layers.values()} == {DeltaWeight}
    assert set(layers) == set(delta_layers(model))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names == [f"{name}.weight_deltas.delta" for name in layers]


def test_a_hooked_forward_still_runs() -> None:
    model = pico_llama()
    module = model.model.layers[0].mlp.up_proj
    plain = module.forward
    module.forward = lambda x: 2 * plain(x)
    check(model, select(model), lambda m: m(input_ids=TOKENS_BS).logits, 1e-3)


def test_a_tied_and_scaled_embedding_keeps_its_scale() -> None:
    class Scaled(nn.Embedding):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens) * 3.5

    model = pico_llama(tied=True)
    embedding = Scaled(96, 32, padding_idx=5)
    embedding.weight = model.lm_head.weight
    model.set_input_embeddings(embedding)
    check(model, select(model, "lm_head"), lambda m: m(input_ids=TOKENS_BS).logits, 1e-3)


def test_micro_batches_add_up_and_copies_train_by_themselves() -> None:
    kind = type("Kind", (Own,), {"way": staticmethod(WAYS["matmul T"])})
    model = nn.Sequential(kind(6, 8))
    layer = attach(model, select(model, "0"))["0"]
    x = torch.randn(2, 5, 6)
    copied = copy.deepcopy(model)
    (model(x[:1]).square().sum() + model(x[1:]).square().sum()).backward()
    once = layer.delta.grad
    assert once is not None
    once = once.clone()
    layer.delta.grad = None
    for part in (x[:1], x[1:]):
        model(part).square().sum().backward()
    torch.testing.assert_close(layer.delta.grad, once)
    own = delta_layers(copied)["0"]
    assert own is not layer
    assert own.delta.grad is None
    copied(x).square().sum().backward()
    torch.testing.assert_close(own.delta.grad, once)
    own.delta.data += 1
    refold(copied)
    assert not torch.equal(own.weight, layer.weight)


def test_a_model_that_is_gone_is_freed_at_once() -> None:
    import gc
    import weakref

    kind = type("Kind", (Own,), {"way": staticmethod(WAYS["matmul T"])})
    model = nn.Sequential(kind(6, 8))
    attach(model, select(model, "0"))
    model(torch.randn(1, 2, 6)).sum()  # a graph that no backward pass ever consumes
    parameter = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert parameter() is None


def test_a_frozen_delta_costs_no_graph() -> None:
    kind = type("Kind", (Own,), {"way": staticmethod(WAYS["matmul T"])})
    model = nn.Sequential(kind(6, 8))
    layer = attach(model, select(model, "0"))["0"]
    layer.delta.requires_grad_(False)
    assert not model(torch.randn(1, 2, 6)).requires_grad
    assert isinstance(DeltaLinear.from_base(nn.Linear(6, 8), torch.zeros(8, 1)), DeltaLinear)
