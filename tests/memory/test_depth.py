"""A step told from shallow models equals the step of the whole one, or is not told."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from conftest import pico_bert, pico_gpt2, pico_llama
from torch import nn

from neuroada_cli.benchmarking.measure import all_targets
from neuroada_cli.benchmarking.peers import make as make_peer
from neuroada_cli.memory import Breakdown, depth, predict, prediction
from neuroada_cli.memory.tracker import StepBytes

DEEP = 5  # blocks are enough here


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "FEWEST", DEEP)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: pico_llama(num_hidden_layers=DEEP),
    "tied llama": lambda: pico_llama(tied=True, num_hidden_layers=DEEP),
    "gpt2": lambda: pico_gpt2(n_layer=DEEP),
    "bert": lambda: pico_bert(num_hidden_layers=DEEP),
}


def predicted(model: nn.Module, method: str = "neuroada", **settings: object) -> Breakdown:
    given: dict[str, object] = {"k": 3, "batch": 4, "sequence": 48, "targets": all_targets(model)} | settings
    return predict(model, method=make_peer(method), **given)  # type: ignore[arg-type]


def stepped(model: nn.Module, monkeypatch: pytest.MonkeyPatch, **settings: object) -> Breakdown:
    """The same with every block stepped through."""
    with monkeypatch.context() as patched:
        patched.setattr(prediction, "by_depth", lambda *_: None)
        return predicted(model, **settings)  # type: ignore[arg-type]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether shallow models told each step that was predicted."""
    found: list[bool] = []

    def noted(*given: object) -> object:
        found.append((step := depth.by_depth(*given)) is not None)  # type: ignore[arg-type]
        return step

    monkeypatch.setattr(prediction, "by_depth", noted)
    return found


@pytest.mark.parametrize(
    ("name", "method"),
    [("llama", "mask"), ("tied llama", "full"), ("gpt2", "neuroada"), ("bert", "neuroada")],
)
def test_shallow_models_tell_the_step_of_a_deep_one(
    name: str, method: str, told: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[name]()
    assert predicted(model, method) == stepped(model, monkeypatch, method=method)
    assert told == [True]


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": True, "batch": 16},
        {"padded": True, "batch": 4, "dtype": torch.bfloat16, "learnt": 5},
        {"batch": 1, "sequence": 2},  # gradients outweigh activations
    ],
    ids=str,
)
def test_what_is_told_is_exact_under_every_setting(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS["llama"]()
    method = "full" if settings["batch"] == 1 else "neuroada"
    assert predicted(model, method, **settings) == stepped(model, monkeypatch, method=method, **settings)


def test_blocks_that_differ_are_all_stepped_through(
    told: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS["llama"]()
    some = [name for name in all_targets(model) if ".1." not in name]
    assert predicted(model, targets=some) == stepped(model, monkeypatch, targets=some)
    counts = {name: 2 if ".3." in name else 3 for name in all_targets(model)}
    assert predicted(model, k=counts) == stepped(model, monkeypatch, k=counts)
    predicted(pico_llama(num_hidden_layers=DEEP - 1))
    model.model.layers[4].self_attn.scaling = 0.5
    predicted(model)
    assert told == [False] * 4


def test_the_model_is_left_as_it_was() -> None:
    model = MODELS["gpt2"]()
    before = [(name, id(module)) for name, module in model.named_modules()]
    predicted(model)
    assert [(name, id(module)) for name, module in model.named_modules()] == before


@pytest.mark.parametrize(
    ("name", "method", "settings"),
    [
        ("llama", "neuroada", {}),
        ("tied llama", "full", {"learnt": 5}),
        ("gpt2", "mask", {"gradient_checkpointing": True}),
    ],
)
def test_other_batches_of_a_model_that_is_known_to_be_even_take_two_steps(
    name: str, method: str, settings: dict[str, object], told: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps, one_step = MODELS[name](), Counter[str](), prediction._step
    monkeypatch.setattr(prediction, "_step", lambda *given: steps.update(["run"]) or one_step(*given))
    predicted(model, method, **settings)
    assert (steps.pop("run"), told) == (3, [True])
    for batch, sequence in ((1, 2), (64, 48), (300, 16)):
        given = settings | {"batch": batch, "sequence": sequence}
        assert predicted(model, method, **given) == stepped(model, monkeypatch, method=method, **given)
        assert (steps.pop("run"), told[-1]) == (3, True)  # two, and the whole one that it is compared with
    predicted(model, method, **settings | {"k": 2})  # of another kind
    assert steps.pop("run") == 3


@pytest.mark.parametrize(("fourth", "tried"), [(200, [2, 3, 4, 3, 4]), (201, [2, 3, 4, 2, 3, 4])])
def test_only_what_grew_evenly_takes_two_steps(fourth: int, tried: list[int]) -> None:
    model, made = pico_llama(num_hidden_layers=DEEP), []
    stack = depth.alike_blocks(model, {}, ())

    def step_of(shallow: nn.Module, _: object) -> StepBytes:
        made.append(count := len(shallow.model.layers))  # type: ignore[union-attr,arg-type]
        return StepBytes(10 * count, count, 11 * count, ({2: 100, 3: 150, 4: fourth}[count], 80, 0))

    for _ in range(2):
        found = depth.by_depth(stack, lambda: copy.deepcopy(model), step_of, "kind")
        assert (found is None) == (fourth != 200)
    assert made == tried
