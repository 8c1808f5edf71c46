"""The cells of a suite, and the content hash under which a finished one is found again."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from neuroada_cli import __version__
from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.suites.schema import Overrides, Suite

FORMAT = 1  # raise it when a cell's result means something else


@dataclass(frozen=True)
class Cell:
    """One run. tuned: the values under trial, or those that were chosen."""

    label: str
    variant: str
    seed: int
    recipe: Recipe
    tuned: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Equal for runs that would give the same result, whatever suite or variant asks for them.

        Empty settings are left out, so that a new one, empty by default, leaves the hashes as they were.
        """
        content = self.recipe.model_dump(mode="json", exclude_none=True)
        for name in ("name", "description", "run_dir"):
            content.pop(name, None)
        content["data"].pop("data_dir", None)
        content |= {"format": FORMAT, "version": __version__}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def cell(
    suite: Suite,
    label: str,
    variant: str,
    seed: int,
    tuned: Overrides,
    extra: Overrides,
) -> Cell:
    """The recipe of one cell; later entries win: suite, recipe, variant, tuned, then `extra`.

    Raises RecipeError for whatever the combination breaks.
    """
    given: Overrides = {
        **suite.set,
        **suite.per_recipe.get(label, {}),
        **suite.variants[variant],
        **tuned,
        **extra,
        "seed": seed,
    }
    words = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    return Cell(label, variant, seed, load_recipe(suite.recipes[label], words), dict(tuned))


def trials(suite: Suite, label: str, variant: str, extra: Overrides) -> list[Cell]:
    """One cell per combination of the values to tune; none where nothing is tuned."""
    if suite.tune is None or variant in suite.untuned:
        return []
    keys = list(suite.tune.values)
    return [
        cell(suite, label, variant, suite.tune.seed, dict(zip(keys, values, strict=True)), extra)
        for values in itertools.product(*suite.tune.values.values())
    ]


def places(suite: Suite) -> list[tuple[str, str]]:
    """(recipe label, variant) in the order of the table."""
    return [(label, variant) for label in suite.recipes for variant in suite.variants]
