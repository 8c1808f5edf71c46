"""What the loop and the selection take of a recipe has the recipe's names and defaults: one home each."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import pytest

from neuroada_cli.loop.loop import Settings
from neuroada_cli.loop.optim import OptimSettings
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.recipe.schema import OptimSection, SelectSection, TrainSection
from neuroada_cli.selection.spread import Spread
from neuroada_cli.training.settings import loop_settings


@pytest.mark.parametrize(
    ("taken", "section"), [(OptimSettings, OptimSection), (Settings, TrainSection), (Spread, SelectSection)]
)
def test_names_and_defaults_are_the_recipe_s(taken: Any, section: Any) -> None:
    for field in fields(taken):
        if field.name in ("optim", "seed"):
            continue
        own = field.default_factory() if field.default_factory is not MISSING else field.default
        theirs = section.model_fields[field.name].default
        assert own is MISSING or own == theirs, field.name


def test_every_setting_of_the_loop_arrives() -> None:
    given = {
        "optim": {"lr": 0.5, "head_lr": 0.25, "schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.1,
                  "betas": [0.5, 0.6], "eps": 1e-3, "clip": 2.0},
        "train": {"epochs": 2, "max_steps": 7, "batch_size": 6, "micro_batch_size": 3, "packing": True,
                  "group_by_length": False, "gradient_checkpointing": True, "eval_every": 4,
                  "save_every": 5, "early_stop": 6, "reselect_every": 9},
    }  # fmt: skip
    recipe = recipe_from({"name": "x", "seed": 11, "model": {"path": "m"}, "data": {"task": "math"}, **given})
    found = loop_settings(recipe)
    assert found.seed == 11
    for field in fields(OptimSettings):
        assert getattr(found.optim, field.name) == getattr(recipe.optim, field.name), field.name
    for field in fields(Settings):
        if field.name not in ("optim", "seed"):
            assert getattr(found, field.name) == getattr(recipe.train, field.name), field.name
