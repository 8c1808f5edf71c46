"""What a suite file says: which recipes, changed how, over which seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from neuroada_cli.errors import RecipeError, nearest
from neuroada_cli.recipe import strict_yaml
from neuroada_cli.recipe.explain import validate
from neuroada_cli.recipe.load import bundled_folder
from neuroada_cli.recipe.schema import Section

Overrides = dict[str, Any]  # recipe key, as in --set -> value


class TuneSection(Section):
    values: dict[str, list[Any]] = Field(
        min_length=1, description="Recipe key -> values to try; each combination trains once per variant."
    )
    seed: int = Field(0, ge=0, description="Seed of these trials.")


class Suite(Section):
    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=200, description="Names the results folder.")
    description: str = Field("", description="One line: what the experiment asks.")
    recipes: dict[str, str] = Field(min_length=1, description="Label -> recipe (file or bundled name).")
    set: Overrides = Field({}, description="Recipe keys changed in every cell.")
    per_recipe: dict[str, Overrides] = Field({}, description="Label -> recipe keys changed there only.")
    variants: dict[str, Overrides] = Field(min_length=1, description="Label -> recipe keys of that row.")
    tune: TuneSection | None = Field(
        None, description="Choose these on validation rows only, alike for every variant and recipe."
    )
    untuned: dict[str, str | None] = Field(
        {}, description="Variant -> variant whose tuned values it takes; null: it keeps its own."
    )
    seeds: list[int] = Field([0], min_length=1, description="One run per seed; the table shows mean ± sd.")
    score: bool | Literal["loss", "validation"] = Field(
        True,
        description="Score the test tasks; `loss`: only the loss of their reference answers (a forward pass "
        "instead of generation); `validation`: the best value on validation rows; false: time and memory.",
    )

    @model_validator(mode="after")
    def _names(self) -> Suite:
        for label in self.per_recipe:
            if label not in self.recipes:
                raise ValueError(
                    f"per_recipe.{label} is not one of recipes; choose {', '.join(self.recipes)}"
                )
        for label, other in self.untuned.items():
            unknown = other is not None and (other not in self.variants or other in self.untuned)
            if label not in self.variants or unknown:
                raise ValueError(f"untuned.{label}: {other} does not name two variants, the second one tuned")
        return self


def bundled_suites() -> dict[str, Path]:
    """Name -> file of the suites that come with the package."""
    folder = bundled_folder()
    return {p.stem: p for p in sorted((folder / "suites").glob("*.yaml"))} if folder else {}


def load_suite(path: str | Path) -> Suite:
    """A suite file, or the name of a bundled one. Raises RecipeError with file and line."""
    bundled = bundled_suites()
    file = Path(path)
    if not file.is_file():
        if str(path) not in bundled:
            raise RecipeError("no such suite", str(path), nearest(str(path), bundled))
        file = bundled[str(path)]
    values, lines = strict_yaml.parse(strict_yaml.read(file, str(path)), str(path))
    if not isinstance(values, dict):
        raise RecipeError("a suite is a mapping with recipes, variants, …", str(path))
    return validate(Suite, values, str(path), lines, {})
