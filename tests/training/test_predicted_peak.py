"""The peak that a dry run tells is that of the run's own steps, however rows and attention are laid out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli import hub
from neuroada_cli.loop.loop import Schedule
from neuroada_cli.loop.loss import token_loss
from neuroada_cli.memory import Breakdown, StepMemory, TensorBytes
from neuroada_cli.training.plan import predicted_memory
from neuroada_cli.training.preflight import check
from neuroada_cli.training.settings import loop_settings


@pytest.mark.parametrize(
    "settings",
    [
        {"train": {"packing": True}},
        {"model": {"attention": "eager"}},
        {"train": {"packing": True}, "model": {"attention": "eager"}},
    ],
    ids=str,
)
def test_packed_rows_and_eager_attention_are_predicted(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path / "base", attention_dropout=0.0)
    train = {"batch_size": 8, "micro_batch_size": 8, **settings.get("train", {})}
    checked = check(tiny_recipe(folder, tmp_path / "run", **{**settings, "train": train}), overwrite=False)
    guess = predicted_memory(checked.recipe, checked.plan, checked.rows, checked.base, "cpu")
    assert isinstance(guess, Breakdown)

    loaded = hub.load_model(
        folder, "causal-lm", "fp32", attention=checked.recipe.model.attention
    ).model.train()
    indices = {
        name: torch.zeros(rows, 2, dtype=torch.int32) + torch.arange(2, dtype=torch.int32)
        for name, (rows, _) in checked.plan.sizes.shapes.items()
    }
    method = checked.plan.facts.build()
    step = StepMemory(loaded, method, lambda: method.attach(loaded, indices), TensorBytes())
    longest = max(checked.rows.data.train, key=len)
    data = dataclasses.replace(checked.rows.data, train=[longest] * 8)
    batch = Schedule(data, loop_settings(checked.recipe)).micro_batches(0)[0]
    assert guess.peak == pytest.approx(step.run(lambda: token_loss(loaded, batch)[0]).peak, rel=0.12)
