"""What is wrong with a recipe, as one line with its place."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from neuroada_cli.errors import RecipeError, nearest
from neuroada_cli.recipe import strict_yaml
from neuroada_cli.recipe.keys import _section_type, all_keys
from neuroada_cli.recipe.types import WORDS

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
        if (deeper := _deeper(path, given)) is not None and error["type"] != "extra_forbidden":
            fix = f"a name with dots stands in braces: {_in_braces(path, deeper)}"
        raise RecipeError(what, _place(path, where, lines, given), fix) from None


def _place(
    path: tuple[str, ...], where: str, lines: strict_yaml.Lines, given: dict[tuple[str, ...], str]
) -> str:
    """The override that set the value, or file:line of the key or of the nearest section around it."""
    deeper = _deeper(path, given)
    for size in range(len(path), 0, -1):
        if path[:size] in given:
            return f"--set {given[path[:size]]}"
        if size == len(path) and deeper is not None and path not in lines:
            return f"--set {given[deeper]}"
        if path[:size] in lines:
            return f"{where}:{lines[path[:size]]}"
    return where


def _deeper(path: tuple[str, ...], given: dict[tuple[str, ...], str]) -> tuple[str, ...] | None:
    """The key of an override that stands below `path`, where its own dots have made it."""
    return next((key for key in given if path and len(key) > len(path) and key[: len(path)] == path), None)


def _in_braces(path: tuple[str, ...], deeper: tuple[str, ...]) -> str:
    return f"{'.'.join(path[:-1])}={{{'.'.join(deeper[len(path) - 1 :])}: …}}"


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
    shown = f"a {type(value).__name__}" if isinstance(value, dict | list) else _shown(value)
    if error["type"] in _WANTED:
        wanted, fix = _WANTED[error["type"]]
        return f"{key}={shown[:80]}: input should be {wanted}", fix(value)
    pattern = error.get("ctx", {}).get("pattern")
    if pattern in WORDS:
        return f"{key}={shown[:80]}: input should be {WORDS[pattern]}", None
    message = str(error["msg"])
    hint = "write null for none" if _is_no_value(value) and _takes_null(path, model) else None
    return f"{key}={shown[:80]}: {message[0].lower()}{message[1:]}", hint


def _is_no_value(value: Any) -> bool:
    """Python's word for it, or `off`, which YAML reads as false."""
    return value is False or (isinstance(value, str) and value.lower() in ("none", "nil"))


def _takes_null(path: tuple[str, ...], model: type[BaseModel]) -> bool:
    for part in path[:-1]:
        field = model.model_fields.get(part)
        below = _section_type(field.annotation) if field is not None else None
        if below is None:
            return False
        model = below
    field = model.model_fields.get(path[-1]) if path else None
    return field is not None and type(None) in get_args(field.annotation)


def _as_list(value: Any) -> str | None:
    return f"write [{value}]" if isinstance(value, str | int | float) else None


def _quoted(value: Any) -> str | None:
    """A word or number that YAML reads as something else than text."""
    return "put it in quotes" if isinstance(value, bool | int | float | datetime.date) else None


# pydantic's words for these name classes of Python
_WANTED: dict[str, tuple[str, Callable[[Any], str | None]]] = {
    "list_type": ("a list", _as_list),
    "tuple_type": ("a list", _as_list),
    "string_type": ("text", _quoted),
    "dict_type": ("keys with values", lambda value: "write {key: value}"),
    "model_type": ("a section with keys of its own", lambda value: "write them below it"),
}


def _shown(value: Any) -> str:
    """As YAML writes it, but for text, which keeps its quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, datetime.date) else repr(value)


def _fields_at(path: tuple[str, ...], model: type[BaseModel]) -> Iterator[str]:
    for part in path:
        below = _section_type(model.model_fields[part].annotation) if part in model.model_fields else None
        if below is None:
            return
        model = below
    yield from model.model_fields
