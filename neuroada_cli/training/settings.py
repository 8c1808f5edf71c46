"""What parts of a recipe mean to those who know no recipe."""

from __future__ import annotations

from dataclasses import fields

from neuroada_cli.loop.loop import Settings
from neuroada_cli.loop.optim import OptimSettings
from neuroada_cli.recipe.schema import Recipe


def loop_settings(recipe: Recipe) -> Settings:
    """The recipe's `optim` and `train` sections and its seed, as the loop takes them: by the same names."""
    optim = OptimSettings(**{each.name: getattr(recipe.optim, each.name) for each in fields(OptimSettings)})
    names = (each.name for each in fields(Settings) if each.name not in ("optim", "seed"))
    return Settings(optim=optim, seed=recipe.seed, **{name: getattr(recipe.train, name) for name in names})
