"""The learning rate over a run, the optimizer's groups, the gradient norm."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import pico_bert
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from neuroada_cli.data.batch import Encoded, share_of
from neuroada_cli.loop import optimizer_state
from neuroada_cli.loop.loop import Schedule, TrainData
from neuroada_cli.loop.optim import SCHEDULES, OptimSettings, adamw, clip_gradients, lr_factor, set_lr
from neuroada_cli.methods import METHODS
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.training.settings import loop_settings


@given(st.integers(1, 400), st.sampled_from(sorted(SCHEDULES)), st.floats(0, 1))
def test_rises_to_the_peak_and_never_leaves_the_bounds(total: int, schedule: str, ratio: float) -> None:
    factors = [lr_factor(step, total, schedule, ratio) for step in range(total)]
    warmup = share_of(ratio, total)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert max(factors) == pytest.approx(1)


def test_without_warmup_linear_is_the_schedule_of_transformers() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs: LambdaLR = get_linear_schedule_with_warmup(optimizer, 0, 10)
    for step in range(10):
        assert lr_factor(step, 10, "linear", 0.0) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@given(st.integers(1, 400), st.sampled_from(sorted(SCHEDULES)), st.integers(1, 500))
def test_a_warmup_in_steps_rises_for_so_many_and_goes_on_like_a_share(
    total: int, schedule: str, warmup: int
) -> None:
    factors = [lr_factor(step, total, schedule, 0.0, warmup) for step in range(total)]
    assert factors[:warmup] == [(step + 1) / warmup for step in range(min(total, warmup))]
    if warmup <= total:
        share = warmup / total
        if share_of(share, total) == warmup:  # not of 1/3 of 3, which is written with too few digits
            assert factors == [lr_factor(step, total, schedule, share) for step in range(total)]
        assert max(factors) == 1


def test_a_warmup_in_steps_goes_from_the_recipe_to_the_run() -> None:
    """LLM-Adapters' 100 steps; a longer run changes nothing about them."""
    for rows in (1600, 16000):
        recipe = recipe_from({
            "name": "a", "model": {"path": "b"}, "data": {"task": "rte"},
            "optim": {"warmup_steps": 100}, "train": {"batch_size": 16},
        })  # fmt: skip
        data = TrainData([Encoded([1], [1], row) for row in range(rows)], [], "generation", 0)
        schedule = Schedule(data, loop_settings(recipe))
        assert schedule.total == 3 * rows / 16
        found = [schedule.lr_factor(step) for step in range(100)]
        assert found == pytest.approx([(step + 1) / 100 for step in range(100)])
        assert schedule.lr_factor(101) < 1


def test_groups_decay_and_rates() -> None:
    model, settings = pico_bert(), OptimSettings(lr=1e-2, head_lr=1e-3, weight_decay=0.1)
    method = METHODS["neuroada"].build()
    index_OK = torch.zeros(32, 1, dtype=torch.int32)
    method.attach(model, {"bert.encoder.layer.0.attention.self.query": index_OK}, ["classifier.weight"])
    optimizer = adamw(model, method, settings)
    set_lr(optimizer, 0.5)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(5e-3, 0.1), (5e-4, 0.0)]
    assert optimizer.param_groups[0]["params"][0].shape == (32, 1)
    assert optimizer.param_groups[1]["params"][0] is model.classifier.weight


def test_every_setting_of_a_recipe_reaches_adamw() -> None:
    optim = {
        "lr": 3e-3, "head_lr": 7e-3, "weight_decay": 0.05, "betas": [0.7, 0.8], "eps": 1e-4, "clip": 0.25,
        "schedule": "cosine", "warmup_steps": 7,
    }  # fmt: skip
    recipe = recipe_from({"name": "a", "model": {"path": "b"}, "data": {"task": "rte"}, "optim": optim})
    settings = loop_settings(recipe).optim
    said = {
        name: list(value) if isinstance(value, tuple) else value for name, value in vars(settings).items()
    }
    assert said == {**vars(OptimSettings(0.0)), **optim}
    model, method = pico_bert(), METHODS["neuroada"].build()
    index_OK = torch.zeros(32, 1, dtype=torch.int32)
    method.attach(model, {"bert.encoder.layer.0.attention.self.query": index_OK}, ["classifier.weight"])
    optimizer = adamw(model, method, settings)
    parameter, expected = optimizer.param_groups[0]["params"][0], nn.Parameter(torch.zeros(32, 1))
    reference = torch.optim.AdamW([expected], lr=3e-3, weight_decay=0.05, betas=(0.7, 0.8), eps=1e-4)
    chance = torch.Generator().manual_seed(0)
    set_lr(optimizer, 1.0)
    for _ in range(3):
        grad = torch.randn(32, 1, generator=chance) * 1e-4  # of the size of eps, so that it counts
        parameter.grad, expected.grad = grad.clone(), grad.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("missing", ["0.exp_avg", "1.exp_avg_sq", "1.step"])
def test_a_state_without_one_of_its_parts_is_refused(missing: str) -> None:
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    for parameter in parameters:
        parameter.grad = torch.ones(2)
    optimizer.step()
    tensors = optimizer_state.tensors_of(optimizer)
    optimizer_state.load(optimizer, tensors, 1)
    with pytest.raises(ValueError, match=missing):
        optimizer_state.load(optimizer, {key: t for key, t in tensors.items() if key != missing}, 1)


def test_adamw_leaves_the_decay_of_masked_weights_to_the_method() -> None:
    model, method = pico_bert(), METHODS["mask"].build()
    index_OK = torch.zeros(32, 1, dtype=torch.int32)
    method.attach(model, {"bert.encoder.layer.0.attention.self.query": index_OK})
    (group,) = adamw(model, method, OptimSettings(lr=1e-2, weight_decay=0.1)).param_groups
    assert group["weight_decay"] == 0.0


@pytest.mark.parametrize(("limit", "scale"), [(1.0, 0.2), (10.0, 1.0), (None, 1.0)])
def test_clipping(limit: float | None, scale: float) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, limit).item() == pytest.approx(5)
    assert parameters[0].grad.item() == pytest.approx(3 * scale, rel=1e-5)
    assert parameters[1].grad.item() == pytest.approx(4 * scale, rel=1e-5)
    assert parameters[2].grad is None


@pytest.mark.parametrize("shape", [(1 << 23,), (1 << 13, 1 << 10), (3, 1 << 21), (1, 1 << 18)])
def test_the_norm_of_a_gradient_does_not_depend_on_its_size(shape: tuple[int, ...]) -> None:
    """Equal numbers, of which a norm over all in fp32 is off by most."""
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.full(shape, 0.1)
    exact = float(torch.tensor(0.1)) * math.sqrt(parameter.numel())
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(exact, rel=5e-5)
    assert float(parameter.grad.double().square().sum()) == pytest.approx(1, rel=1e-4)
