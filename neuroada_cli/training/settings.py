"""What parts of a recipe mean to those who know no recipe."""

from __future__ import annotations

from dataclasses import fields

import torch

from neuroada_cli import hub
from neuroada_cli.hub.stored import own_dtype
from neuroada_cli.loop.loop import Settings
from neuroada_cli.loop.optim import OptimSettings
from neuroada_cli.recipe.schema import Recipe


def with_own_dtype(recipe: Recipe, base: hub.Base) -> Recipe:
    """The recipe with the data type that it leaves to the base."""
    if recipe.model.dtype is not None:
        return recipe
    model = recipe.model.model_copy(update={"dtype": own_dtype(base.weights)})
    return recipe.model_copy(update={"model": model})


def dtype_of(recipe: Recipe) -> torch.dtype:
    """Of the frozen weights. The recipe is one that `with_own_dtype` completed."""
    assert recipe.model.dtype is not None, "the base says it"
    return hub.TORCH_DTYPES[recipe.model.dtype]


def loop_settings(recipe: Recipe) -> Settings:
    """The recipe's `optim` and `train` sections and its seed, as the loop takes them: by the same names."""
    optim = OptimSettings(**{each.name: getattr(recipe.optim, each.name) for each in fields(OptimSettings)})
    names = (each.name for each in fields(Settings) if each.name not in ("optim", "seed"))
    return Settings(optim=optim, seed=recipe.seed, **{name: getattr(recipe.train, name) for name in names})
