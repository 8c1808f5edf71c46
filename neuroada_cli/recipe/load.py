"""Recipes: one YAML file says what a command does. Strict, frozen, and the only home of a setting.

`load_recipe` turns a file plus `--set section.key=value` overrides into a `Recipe`. Whatever is wrong is
reported as `file:line: what; what to do` before anything heavy is imported (this module knows only
pydantic and PyYAML).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from neuroada_cli.errors import RecipeError, nearest
from neuroada_cli.recipe import strict_yaml
from neuroada_cli.recipe.explain import validate
from neuroada_cli.recipe.schema import Recipe

# ---------------------------------------------------------------------------------------------------
# Loading


def bundled_folder() -> Path | None:
    """Where the recipes lie that come with the package (or with the checkout it runs from)."""
    package = Path(__file__).parents[1]
    folders = (package / "bundled_recipes", package.parent / "recipes")
    return next((folder for folder in folders if folder.is_dir()), None)


def bundled_recipes() -> dict[str, Path]:
    """Name -> file of the bundled recipes."""
    folder = bundled_folder()
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))} if folder else {}


def find_recipe(name: str | os.PathLike[str]) -> Path:
    """A path as given, or the bundled recipe of that name (`llama7b_math`, `recipes/llama7b_math.yaml`)."""
    path = Path(name)
    if path.is_file():
        return path
    bundled = bundled_recipes()
    if path.stem in bundled and str(path) in {path.stem, f"{path.stem}.yaml", f"recipes/{path.name}"}:
        return bundled[path.stem]
    if path.is_dir():
        raise RecipeError("is a folder, not a recipe", str(path), "name a .yaml file")
    hint = nearest(path.stem, bundled, "`neuroada recipes` lists the bundled ones")
    raise RecipeError("no such recipe", str(path), hint)


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, validate.

    path       a YAML file, or the name of a bundled recipe
    overrides  "section.key=value" strings with YAML values; they go through the same validation
    Raises RecipeError with file and line, or with the override that was wrong.
    """
    file = find_recipe(path)
    where = str(path)
    text = strict_yaml.read(file, where)
    values, lines = strict_yaml.parse(text, where)
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping with the sections model, data, …", where)
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        _apply_override(values, override, given)
    return _validate(values, where, lines, given)


def recipe_from(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """A Recipe from plain values, with the same checks and messages as a file."""
    return _validate(values, where, {}, {})


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe that was read, with "section.key=value" strings applied as `load_recipe` does."""
    values: dict[str, Any] = recipe.model_dump(mode="json")
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        _apply_override(values, override, given)
    return _validate(values, "the run's recipe", {}, given)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_override(override: str) -> tuple[str, Any]:
    """(key, value) of "section.key=value", the value as YAML. Raises RecipeError."""
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(
            f"--set {override} is not of the form section.key=value", fix="write e.g. optim.lr=3e-4"
        )
    return key.strip(), strict_yaml.parse(raw, f"--set {override}")[0]


def _apply_override(values: dict[str, Any], override: str, given: dict[tuple[str, ...], str]) -> None:
    key, value = read_override(override)
    parts = tuple(part.strip() for part in key.split("."))
    here = values
    for part in parts[:-1]:
        below = here.setdefault(part, {})
        if not isinstance(below, dict):
            raise RecipeError(f"{part} is not a section", f"--set {override}")
        here = below
    here[parts[-1]] = value
    given[parts] = override


def _validate(
    values: dict[str, Any], where: str, lines: strict_yaml.Lines, given: dict[tuple[str, ...], str]
) -> Recipe:
    return validate(Recipe, values, where, lines, given)
