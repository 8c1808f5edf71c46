"""Layers without a gradient are named, and an entry of the targets that cannot train is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from neuroada_cli.commands import train
from neuroada_cli.delta.model import attach, delta_layers
from neuroada_cli.delta.targets import find_targets
from neuroada_cli.errors import NumericsError
from neuroada_cli.loop.unreached import Unreached, described, refuse_unreached, unreached
from neuroada_cli.selection.criteria import choose

TOKENS = torch.arange(3, 23).view(2, 10)


def attached(model: nn.Module) -> list[nn.Parameter]:
    targets = find_targets(model, heads=["lm_head"])
    attach(model, {name: choose(t.weight.detach(), 2) for name, t in targets.items()})
    return [layer.delta for layer in delta_layers(model).values()]


def test_what_the_forward_does_not_use_is_found_with_its_share() -> None:
    model = pico_llama()
    model.model.unused = nn.Linear(32, 32)
    multiplied = model.model.layers[1].mlp.down_proj
    multiplied.register_forward_hook(lambda _, __, y: y * 0)
    parameters = attached(model)
    # hooks stay with the module that is replaced, so the layer's own output is silenced here
    delta_layers(model)["model.layers.1.mlp.down_proj"].register_forward_hook(lambda _, __, y: y * 0)
    model(input_ids=TOKENS).logits.square().sum().backward()
    found = unreached(model, parameters)
    silent = [f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert set(found.names) == {"model.unused", *silent}
    missed = sum(delta_layers(model)[name].delta.numel() for name in found.names)
    assert found.share == pytest.approx(missed / sum(p.numel() for p in parameters))
    assert described(found).startswith("4 layers get no gradient, ")
    assert "model.unused" in described(found)


def test_nothing_is_found_where_all_train() -> None:
    model = pico_llama()
    parameters = attached(model)
    model(input_ids=TOKENS).logits.square().sum().backward()
    assert unreached(model, parameters) == Unreached()


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["a.q", "b.q"], True),
        (["a.q"], False),
        (["a.q", "b.q.lora_A.weight"], True),
        (["a.qq", "b.q"], False),
    ],
)
def test_an_entry_is_refused_only_if_none_of_its_layers_trains(names: list[str], refused: bool) -> None:
    found = Unreached(tuple(names), 0.5)
    if not refused:
        refuse_unreached(found, {"q": ["a.q", "b.q"], "none": []})
        return
    with pytest.raises(NumericsError, match=r"q gets no gradient: .* a\.q, b\.q"):
        refuse_unreached(found, {"q": ["a.q", "b.q"]})


@pytest.fixture
def detached_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose code takes the queries as they are, without a gradient."""
    plain = modeling_llama.LlamaAttention.forward

    def forward(self: nn.Module, hidden_states: Tensor, **more: object) -> object:
        project = self.q_proj
        self.q_proj = _Detached(project)
        try:
            return plain(self, hidden_states, **more)
        finally:
            self.q_proj = project

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", forward)


class _Detached(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.inner(x)
        return made.detach()


@pytest.mark.usefixtures("detached_queries")
@pytest.mark.parametrize("method", ["neuroada", "lora"])
def test_a_run_says_it_after_its_first_step(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_llama_folder(tmp_path / "model")
    section = {"method": method, "max_steps": 1}
    peer = {"peer": {"rank": 2}} if method == "lora" else {}
    train.run(tiny_recipe(model, tmp_path / "run", train=section, **peer))
    said = capsys.readouterr().err
    assert "step 1: " in said
    assert "no gradient" in said
    assert "model.layers.0.self_attn.q_proj" in said
    with pytest.raises(NumericsError, match=r"select\.targets: q_proj gets no gradient"):
        train.run(
            tiny_recipe(
                model, tmp_path / "two", select={"targets": ["q_proj", "v_proj"]}, train=section, **peer
            ),
            quiet=True,
        )
    assert not list((tmp_path / "two").glob("checkpoint-*"))


def test_a_step_without_any_gradient_is_an_error_at_whatever_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama_folder(tmp_path / "model")
    recipe = tiny_recipe(model, tmp_path / "run", train={"max_steps": 4, "save_every": 1})
    from neuroada_cli.loop import step as steps

    calls = []
    plain = steps.sum_gradients

    def lost(parameters: list[nn.Parameter], ranks: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
        plain(parameters, ranks)  # type: ignore[arg-type]

    monkeypatch.setattr(steps, "sum_gradients", lost)
    with pytest.raises(NumericsError, match="all gradients are zero at step 3"):
        train.run(recipe, quiet=True)
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    assert not (tmp_path / "run" / "checkpoint-3").exists()
