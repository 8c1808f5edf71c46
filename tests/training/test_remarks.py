"""What is said before training about numbers that a type cannot hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import tiny_llama_folder, tiny_recipe

from neuroada_cli.commands import train
from neuroada_cli.training.preflight import check
from neuroada_cli.training.remarks import remarks, stuck_moment


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("method", ["neuroada", "bf16 deltas", "mask", "full", "lora"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_second_moment_in_bf16_is_told_wherever_there_is_one(
    method: str, dtype: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the optimizer of a real run holds."""
    given: dict[str, object] = {"method": "neuroada" if method == "bf16 deltas" else method, "max_steps": 1}
    if method == "bf16 deltas":
        given["delta_dtype"] = "bf16"
    held: list[torch.optim.AdamW] = []
    inner = torch.optim.AdamW.__init__

    def noted(self: torch.optim.AdamW, *arguments: object, **named: object) -> None:
        inner(self, *arguments, **named)  # type: ignore[arg-type]
        held.append(self)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", noted)
    recipe = tiny_recipe(base, tmp_path / "run", train=given, model={"dtype": dtype})
    train.run(recipe, quiet=True)
    moments = {state["exp_avg_sq"].dtype for each in held for state in each.state.values()}
    assert moments
    assert (torch.bfloat16 in moments) == (stuck_moment(recipe) is not None), moments


def test_it_is_true_and_the_beta_it_names_is_enough(base: Path, tmp_path: Path) -> None:
    """A moment, and what is left of it after many steps without a gradient."""

    def left(beta: float, value: float) -> float:
        parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
        optimizer = torch.optim.AdamW([parameter], betas=(0.9, beta))
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moment = optimizer.state[parameter]["exp_avg_sq"]
        before = float(moment.fill_(value))
        for _ in range(100):
            optimizer.step()
        return float(moment) / before

    for value in (1.0, 1.25, 1.5, 1.9921875, 3e-6):  # mantissas from end to end
        assert left(0.999, value) == 1
        assert left(0.996, value) < 0.9

    def said(beta: float) -> list[str]:
        changes = {"train": {"delta_dtype": "bf16"}, "optim": {"betas": [0.9, beta]}}
        checked = check(tiny_recipe(base, tmp_path / "other", **changes), overwrite=False)
        return [line for line in remarks(checked) if "second moment" in line]

    (line,) = said(0.999)
    assert line.endswith("a second optim.betas of up to 0.996 lets it")
    assert "train.delta_dtype=fp32" in line
    assert not said(0.996)
