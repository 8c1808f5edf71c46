"""What a suite file says: which recipes, changed how, over which seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from neuroada_cli.errors import RecipeError, nearest
from neuroada_cli.recipe import strict_yaml
from neuroada_cli.recipe.explain import validate
from neuroada_cli.recipe.load import bundled_folder
from neuroada_cli.recipe.schema import Section
from neuroada_cli.recipe.types import NAME

Overrides = dict[str, Any]  # recipe key, as in --set -> value
# what each cell is given by the suite itself -> what to write instead
GIVEN = {"seed": "list them under seeds", "run_dir": "name a folder with --out"}


class TuneSection(Section):
    values: dict[str, list[Any]] = Field(
        min_length=1, description="Recipe key -> values to try; each combination trains once per variant."
    )
    seed: int = Field(0, ge=0, description="Seed of these trials.")


class Suite(Section):
    name: str = Field(pattern=NAME, max_length=200, description="Names the results folder.")
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
        for where, overrides in self._overrides():
            for key in overrides:
                if key in GIVEN:
                    raise ValueError(f"{where}: {key} is the suite's own to give; {GIVEN[key]}")
        for label, overrides in self.variants.items():
            for key in overrides:
                if self.tune and key in self.tune.values and label not in self.untuned:
                    raise ValueError(
                        f"variants.{label}: {key} is tuned, so that this value would never train; remove it, "
                        f"or add untuned: {{{label}: null}}"
                    )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: a run counts once; name each seed once")
        return self

    def _overrides(self) -> Iterator[tuple[str, Overrides]]:
        yield "set", self.set
        for section, each in (("per_recipe", self.per_recipe), ("variants", self.variants)):
            for label, overrides in each.items():
                yield f"{section}.{label}", overrides
        if self.tune is not None:
            yield "tune.values", self.tune.values

    def refuse(self, extra: Overrides) -> None:
        """Raises RecipeError for overrides of all cells that the suite itself decides."""
        for key in extra:
            if key in GIVEN:
                raise RecipeError("is the suite's own to give", f"--set {key}", GIVEN[key])
            if self.tune is not None and key in self.tune.values:
                raise RecipeError(
                    "is tuned by this suite: all its trials would be one", f"--set {key}",
                    "change tune.values in a copy of its file",
                )  # fmt: skip


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
