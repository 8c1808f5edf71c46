"""Choosing anew while training, against dense weights, dense Adam and Python's sets.

O = output neurons, K = connections that train per neuron, U = connections that hold a delta, I = inputs
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import pico_gpt2
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401
from torch import Tensor, nn

from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter import load as adapted
from neuroada_cli.commands import merge, train
from neuroada_cli.delta.model import delta_layers
from neuroada_cli.delta.reselection import places, union
from neuroada_cli.errors import RecipeError
from neuroada_cli.loop.optim import OptimSettings, adamw, set_lr
from neuroada_cli.methods.neuroada import NeuroAda
from neuroada_cli.selection.criteria import choose

OUTPUTS, INPUTS, K = 6, 12, 2
LR, DECAY, EVERY, STEPS = 0.3, 0.1, 3, 14


@pytest.mark.parametrize("seed", range(20))
def test_the_union_is_that_of_sets(seed: int) -> None:
    chance = random.Random(seed)
    rows, chosen, deltas = [], [], []
    for _ in range(OUTPUTS):
        old = sorted(chance.sample(range(INPUTS), 4))
        rows.append(old)
        deltas.append([chance.choice((0.0, 1.5, -2.0)) for _ in old])
        chosen.append(sorted(chance.sample(range(INPUTS), K)))
    index_OK, chosen_OK = torch.tensor(rows, dtype=torch.int32), torch.tensor(chosen, dtype=torch.int32)
    index_OU, trains_OU = union(index_OK, torch.tensor(deltas), chosen_OK, INPUTS)
    place_OU = places(index_OK, index_OU)
    for row in range(OUTPUTS):
        earned = {column for column, delta in zip(rows[row], deltas[row], strict=True) if delta}
        expected = sorted(earned | set(chosen[row]))
        held = [column for column in index_OU[row].tolist() if column >= 0]
        assert held == expected
        assert index_OU[row].tolist()[len(held) :] == [-1] * (index_OU.shape[1] - len(held))
        assert [c for c, on in zip(held, trains_OU[row].tolist(), strict=False) if on] == chosen[row]
        for column, place in zip(held, place_OU[row].tolist(), strict=False):
            assert place == (rows[row].index(column) if column in rows[row] else -1)
    assert index_OU.dtype == torch.int32


class Dense:
    """A dense weight; Adam by hand for each entry that trains, its state gone when the entry does not."""

    def __init__(self, weight_OI: Tensor) -> None:
        self.base_OI, self.delta_OI = weight_OI.clone(), torch.zeros_like(weight_OI)
        self.m_OI, self.v_OI = torch.zeros_like(weight_OI), torch.zeros_like(weight_OI)
        self.trains_OI = torch.zeros_like(weight_OI, dtype=torch.bool)
        self.choose()

    @property
    def weight_OI(self) -> Tensor:
        return self.base_OI + self.delta_OI

    def choose(self) -> None:
        self.trains_OI = torch.zeros_like(self.trains_OI).scatter_(
            1,
            self.weight_OI.abs().topk(K, dim=1).indices,
            torch.tensor(True).expand(self.base_OI.shape[0], K),
        )
        self.m_OI, self.v_OI = self.m_OI * self.trains_OI, self.v_OI * self.trains_OI

    def step(self, grad_OI: Tensor, number: int) -> None:
        grad_OI = grad_OI * self.trains_OI
        self.delta_OI = torch.where(self.trains_OI, self.delta_OI * (1 - LR * DECAY), self.delta_OI)
        self.m_OI = 0.9 * self.m_OI + 0.1 * grad_OI
        self.v_OI = 0.999 * self.v_OI + 0.001 * grad_OI**2
        mean, square = self.m_OI / (1 - 0.9**number), self.v_OI / (1 - 0.999**number)
        self.delta_OI = self.delta_OI - LR * mean / (square.sqrt() + 1e-8)


def test_equals_dense_training_with_the_same_choices() -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
    weight_OI = torch.randn(OUTPUTS, INPUTS, generator=generator)
    layer.weight.data = weight_OI.clone()
    model = nn.Sequential(layer)
    dense, method = Dense(weight_OI), NeuroAda(reselects=True)
    method.attach(model, {"0": choose(weight_OI, K)})
    optimizer = adamw(model, method, OptimSettings(lr=LR, weight_decay=DECAY))
    dropped = 0
    for number in range(1, STEPS + 1):
        x_TI = torch.randn(5, INPUTS, generator=generator)
        grad_TO = torch.randn(5, OUTPUTS, generator=generator)
        model(x_TI).backward(grad_TO)
        set_lr(optimizer, 1.0)
        method.before_step(model, decay=LR * DECAY)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(model)
        dense.step(grad_TO.T @ x_TI, number)
        torch.testing.assert_close(model[0].weight.detach(), dense.weight_OI, rtol=1e-5, atol=1e-6)
        if number % EVERY == 0:
            before = dense.trains_OI
            dense.choose()
            dropped += int((before & ~dense.trains_OI).sum())
            method.reselect(model, partial(choose, k=K), optimizer)
            torch.testing.assert_close(model[0].weight.detach(), dense.weight_OI, rtol=1e-5, atol=1e-6)
    assert dropped > 3, "the choice never changed"
    held = delta_layers(model)["0"]
    held.restore()
    assert torch.equal(model[0].weight.detach(), weight_OI), "without its deltas it is the base, bit for bit"


def test_tied_and_transposed_layers_follow() -> None:
    model = pico_gpt2(tie_word_embeddings=True)
    names = ["transformer.h.0.mlp.c_fc", "lm_head"]
    method = NeuroAda(reselects=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    c_fc = before["transformer.h.0.mlp.c_fc.weight"]
    weights = {names[0]: c_fc.T, names[1]: model.lm_head.weight}
    method.attach(model, {name: choose(weights[name].detach().contiguous(), K) for name in names})
    optimizer = adamw(model, method, OptimSettings(lr=0.3))
    tokens_BS = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    for number in range(6):
        loss = model(input_ids=tokens_BS, labels=tokens_BS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(model)
        if number % 2:
            method.reselect(model, partial(choose, k=K), optimizer)
    assert model.transformer.wte.weight is model.lm_head.weight
    for layer in delta_layers(model).values():
        assert layer.index.shape[1] > K
        layer.restore()
    for name, parameter in model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_that_reselects_is_merged_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    model = tiny_llama_folder(tmp_path / "llama")
    recipe = tiny_recipe(
        model, tmp_path / "run", model={"path": str(model), "dtype": dtype}, optim={"lr": 3e-2},
        train={"reselect_every": 3},
    )  # fmt: skip
    done = train.run(recipe, quiet=True)
    assert done.last is not None
    read = adapters.read_adapter(done.last)
    sizes = {name: (index_OK >= 0).sum(dim=1) for name, index_OK in read.selection.indices.items()}
    k = recipe.select.k
    assert all(int(count_O.min()) >= k for count_O in sizes.values())
    assert any(int(count_O.max()) > k for count_O in sizes.values())
    assert done.trainable == k * sum(len(count_O) for count_O in sizes.values())
    out = merge.run(done.last, tmp_path / "merged", quiet=True).out
    trained = adapted.load(str(done.last)).model.state_dict()
    for name, tensor in adapted.load(str(out), dtype=dtype).model.state_dict().items():
        if name in trained:
            assert torch.equal(tensor, trained[name]), name


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"reselect_every": 2, "method": "mask"}}, "is neuroada's, not mask's"),
        (
            {"train": {"reselect_every": 2}, "select": {"criterion": "snip"}},
            "goes with magnitude, lift, reverse",
        ),
        (
            {"train": {"reselect_every": 2}, "select": {"neurons": 0.5}},
            "goes with the same k for every neuron",
        ),
    ],
)
def test_what_does_not_go_together_is_said(sections, message, tmp_path) -> None:
    with pytest.raises((RecipeError, ValueError), match=message):
        tiny_recipe(tmp_path, tmp_path / "run", **sections)
