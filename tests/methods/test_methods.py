"""What each method trains, keeps still, saves and restores."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import PICO_MODELS, pico_bert, pico_llama
from tiny_run import one_thread  # noqa: F401
from torch import Tensor, nn
from torch.testing import assert_close

from neuroada_cli.delta.layout import is_conv1d
from neuroada_cli.delta.targets import find_targets
from neuroada_cli.methods import METHODS
from neuroada_cli.methods.protocol import Method
from neuroada_cli.methods.state import MethodState
from neuroada_cli.selection.criteria import choose

K = 3
TOKENS_BS = torch.randint(3, 96, (3, 11), generator=torch.Generator().manual_seed(7))


def weight_OI(module: nn.Module) -> Tensor:
    weight = module.weight.detach()  # type: ignore[operator,union-attr]
    return weight.T if is_conv1d(module) else weight  # type: ignore[return-value]


def select(model: nn.Module) -> dict[str, Tensor]:
    heads = [name for name in ("lm_head", "classifier") if hasattr(model, name)]
    return {name: choose(weight_OI(m.owner), K) for name, m in find_targets(model, heads=heads).items()}


def run(
    model: nn.Module, method: Method, steps: int = 2, decay: float = 0.0, lr: float = 0.05
) -> torch.optim.AdamW:
    """A few plain steps with AdamW; a decay as the training loop hands it on."""
    groups = [
        {"params": method.parameters(model), "weight_decay": 0.0 if method.own_decay else decay},
        {"params": method.whole_parameters(), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr)
    for _ in range(steps):
        (model(input_ids=TOKENS_BS).logits.float() ** 2).mean().backward()
        method.before_step(model, decay=lr * decay)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model)
    return optimizer


@pytest.mark.parametrize("name", PICO_MODELS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_mask_and_neuroada_train_the_same_weights(name: str, decay: float) -> None:
    """Two independent routes to the same equation: dense and masked, sampled and folded."""
    base = PICO_MODELS[name]()
    indices, trained = select(base), {}
    for method_name in ("neuroada", "mask"):
        model, method = copy.deepcopy(base), METHODS[method_name].build()
        method.attach(model, indices)
        run(model, method, decay=decay)
        trained[method_name] = method.state(model).deltas
    moved = 0
    for module, delta_OK in trained["neuroada"].items():
        assert_close(trained["mask"][module], delta_OK, rtol=2e-3, atol=2e-5)
        moved += int((delta_OK != 0).sum())
    assert moved > 100


@pytest.mark.parametrize("method_name", ["neuroada", "mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_outside_the_selection_keeps_its_bits(method_name: str, dtype: torch.dtype) -> None:
    base = pico_llama().to(dtype)
    indices = select(base)
    model, method = copy.deepcopy(base), METHODS[method_name].build()
    method.attach(model, indices)
    run(model, method, decay=0.1)
    for name, before in base.named_parameters():
        after = dict(model.named_parameters())[name]
        module = name.removesuffix(".weight")
        if module in indices:
            frozen_OI = torch.ones_like(before, dtype=torch.bool)
            frozen_OI.scatter_(1, indices[module].long(), False)
            assert torch.equal(after[frozen_OI], before[frozen_OI]), name
            assert not torch.equal(after, before), name
        else:
            assert torch.equal(after, before), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitfit_trains_the_biases_and_a_fresh_head_and_nothing_else(dtype: torch.dtype) -> None:
    model, method = pico_bert().to(dtype), METHODS["bitfit"].build()
    method.attach(model, select(model), whole=["classifier.weight", "classifier.bias"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(model, method)
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    reachable = {name for name in before if name.endswith("bias") and "key" not in name}  # softmax ignores it
    assert reachable | {"classifier.weight"} <= moved
    assert all(name.endswith("bias") or name == "classifier.weight" for name in moved)
    assert set(method.state(model).whole) == {
        name for name in before if name.endswith("bias") or name == "classifier.weight"
    }


def test_head_trains_only_what_is_fresh() -> None:
    model, method = pico_bert(), METHODS["head"].build()
    fresh = ["classifier.weight", "classifier.bias"]
    method.attach(model, select(model), whole=fresh)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(model, method)
    assert {n for n, p in model.named_parameters() if not torch.equal(before[n], p)} == set(fresh)
    assert set(method.state(model).whole) == set(fresh)


def test_baselines_without_anything_to_train_say_so() -> None:
    with pytest.raises(ValueError, match="no bias"):
        METHODS["bitfit"].build().attach(pico_llama(), {})
    with pytest.raises(ValueError, match="no fresh head"):
        METHODS["head"].build().attach(pico_bert(), {})


def test_full_trains_everything() -> None:
    base = pico_llama()
    model, method = copy.deepcopy(base), METHODS["full"].build()
    method.attach(model, {})
    run(model, method)
    before = dict(base.named_parameters())
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert method.state(model).deltas == {}
    assert set(method.state(model).whole) == set(before)


@pytest.mark.parametrize("method_name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_restores_every_bit(method_name: str, dtype: torch.dtype) -> None:
    base = pico_bert().to(dtype)
    indices, whole = select(base), ["classifier.weight", "classifier.bias"]
    first, method = copy.deepcopy(base), METHODS[method_name].build()
    method.attach(first, indices, whole)
    run(first, method)
    state = method.state(first)
    saved = MethodState(
        *({n: t.clone() for n, t in part.items()} for part in (state.deltas, state.whole, state.exact))
    )
    second, other = copy.deepcopy(base), METHODS[method_name].build()
    other.attach(second, indices, whole)
    other.load_state(second, saved)
    for a, b in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1]), a[0]
    again = other.state(second)
    for part_a, part_b in zip(
        (state.deltas, state.whole, state.exact), (again.deltas, again.whole, again.exact), strict=True
    ):
        assert all(torch.equal(part_a[name], part_b[name]) for name in part_a)


@pytest.mark.parametrize("method_name", METHODS)
def test_a_state_of_another_selection_is_refused(method_name: str) -> None:
    model, method = pico_bert(), METHODS[method_name].build()
    method.attach(model, select(model), ["classifier.weight"] if method_name == "head" else [])
    state = method.state(model)
    for part in (state.deltas, state.exact, state.whole):
        if part:
            part.pop(next(iter(part)))
    with pytest.raises(ValueError, match="in only one of"):
        method.load_state(model, state)


def test_whole_parameters_add_up_small_updates_in_bf16() -> None:
    """An update of 1e-5 is lost on a bf16 weight of 1; the fp32 master keeps 300 of them."""
    model, method = pico_bert().bfloat16(), METHODS["neuroada"].build()
    with torch.no_grad():
        model.classifier.weight.fill_(1.0)
    method.attach(model, select(model), ["classifier.weight"])
    (master,) = method.whole_parameters()
    assert master.dtype == torch.float32
    for _ in range(300):
        with torch.no_grad():
            master.sub_(1e-5)
        method.after_step(model)
    assert model.classifier.weight.dtype == torch.bfloat16
    assert_close(model.classifier.weight.float(), torch.full((2, 32), 0.997), rtol=0, atol=2e-3)
    assert model.classifier.weight.float().max() < 1.0


def test_whole_gradients_of_micro_batches_add_up_in_fp32() -> None:
    model, method = pico_bert().bfloat16(), METHODS["neuroada"].build()
    method.attach(model, select(model), ["classifier.bias"])
    (master,) = method.whole_parameters()
    single: list[Tensor] = []
    for row in TOKENS_BS:
        master.grad = None
        model(input_ids=row[None]).logits.float().square().sum().backward()
        assert master.grad is not None
        single.append(master.grad.clone())
    master.grad = None
    for row in TOKENS_BS:
        model(input_ids=row[None]).logits.float().square().sum().backward()
    assert torch.equal(master.grad, single[0] + single[1] + single[2])
    assert master.grad.dtype == torch.float32
    assert model.classifier.bias.grad is None


def test_biases_of_targets_train_when_named() -> None:
    base = pico_bert()
    indices = select(base)
    model, method = copy.deepcopy(base), METHODS["neuroada"].build()
    biases = [f"{name}.bias" for name in indices]
    method.attach(model, indices, biases)
    run(model, method)
    now, before = dict(model.named_parameters()), dict(base.named_parameters())
    assert all(not torch.equal(now[name], before[name]) for name in biases if "pooler" not in name)
    assert torch.equal(now["classifier.bias"], before["classifier.bias"])
    assert set(method.state(model).whole) == set(biases)


def test_bf16_deltas_train_and_are_saved_exactly() -> None:
    model = pico_llama()
    rows = model.get_submodule("model.layers.0.mlp.up_proj").weight.shape[0]
    indices = {"model.layers.0.mlp.up_proj": torch.arange(2, dtype=torch.int32).repeat(rows, 1)}
    method = METHODS["neuroada"].build(delta_dtype="bf16")
    method.attach(model, indices)
    optimizer = torch.optim.AdamW(method.parameters(model), lr=1e-2)
    model(torch.arange(3, 9)[None]).logits.square().mean().backward()
    optimizer.step()
    method.after_step(model)
    (parameter,) = method.parameters(model)
    assert parameter.dtype == optimizer.state[parameter]["exp_avg"].dtype == torch.bfloat16
    saved = method.state(model).deltas["model.layers.0.mlp.up_proj"]
    assert saved.dtype == torch.float32
    assert saved.any()
    assert torch.equal(saved.to(torch.bfloat16), parameter.detach())
