"""What is wrong with a recipe, as one line with its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from neuroada_cli.errors import RecipeError, nearest
from neuroada_cli.recipe import strict_yaml
from neuroada_cli.recipe.keys import _section_type, all_keys

Valid = TypeVar("Valid", bound=BaseModel)


def validate(
    model: type[Valid],
    values: dict[str, Any],
    where: str,
    lines: strict_yaml.Lines,
    given: dict[tuple[str, ...], str],
) -> Valid:
    """`values` as a `model`. Raises RecipeError: which key, in which line or override, and what to do.

    lines  line of every key by its path;  given  path -> the override that set it
    """
    try:
        return model.model_validate(values)
    except ValidationError as failure:
        # an unknown key explains more than the required key that it misspells, so it is told first
        errors = sorted(failure.errors(), key=lambda e: e["type"] != "extra_forbidden")
        error = errors[0]
        path = tuple(str(part) for part in error["loc"])
        what, fix = _explain(error, path, model)
        raise RecipeError(what, _place(path, where, lines, given), fix) from None


def _place(
    path: tuple[str, ...], where: str, lines: strict_yaml.Lines, given: dict[tuple[str, ...], str]
) -> str:
    """The override that set the value, or file:line of the key or of the nearest section around it."""
    for size in range(len(path), 0, -1):
        if path[:size] in given:
            return f"--set {given[path[:size]]}"
        if path[:size] in lines:
            return f"{where}:{lines[path[:size]]}"
    return where


def _explain(error: Any, path: tuple[str, ...], model: type[BaseModel]) -> tuple[str, str | None]:
    key = ".".join(path)
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        known = list(_fields_at(path[:-1], model))
        owner = next((k for k in all_keys(model) if k.rpartition(".")[2] == path[-1]), None)
        otherwise = f"did you mean {owner}?" if owner else f"known here: {', '.join(known)}"
        return f"{key} is not a key", nearest(path[-1], known, otherwise) if known or owner else None
    if error["type"] == "missing":
        return f"{key} is missing", "add it"
    if error["type"] == "value_error":  # our own combination checks already say what and what to do
        return str(error["ctx"]["error"]), None
    shown = repr(value) if not isinstance(value, dict | list) else f"a {type(value).__name__}"
    message = str(error["msg"])
    return f"{key}={shown[:80]}: {message[0].lower()}{message[1:]}", None


def _fields_at(path: tuple[str, ...], model: type[BaseModel]) -> Iterator[str]:
    for part in path:
        below = _section_type(model.model_fields[part].annotation) if part in model.model_fields else None
        if below is None:
            return
        model = below
    yield from model.model_fields
