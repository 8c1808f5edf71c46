"""What parts of a recipe mean to those who know no recipe."""

from __future__ import annotations

from neuroada_cli.loop.loop import Settings
from neuroada_cli.loop.optim import OptimSettings
from neuroada_cli.recipe.schema import Recipe


def loop_settings(recipe: Recipe) -> Settings:
    """The recipe's `optim` and `train` sections and its seed, as the loop takes them."""
    optim, section = recipe.optim.model_dump(), recipe.train.model_dump()
    for key in ("method", "delta_dtype", "train_bias", "keep"):  # not the loop's business
        del section[key]
    return Settings(OptimSettings(**optim), seed=recipe.seed, **section)
