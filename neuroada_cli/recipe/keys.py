"""Every key of a recipe as a person looks it up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from neuroada_cli.recipe.schema import Recipe, Section


def _section_type(annotation: Any) -> type[BaseModel] | None:
    for part in (annotation, *get_args(annotation)):  # `PeerSection | None` is one, too
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def all_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every settable key as a dotted path, in the order of the schema."""
    for name, field in model.model_fields.items():
        below = _section_type(field.annotation)
        if below is None:
            yield prefix + name
        else:
            yield from all_keys(below, f"{prefix}{name}.")


@dataclass(frozen=True)
class Key:
    """One setting as a person looks it up. values: what it takes; default is None where it must be given."""

    name: str
    values: str
    default: str | None
    description: str


def described_keys() -> list[Key]:
    """Every settable key, in the order of the schema."""
    schema = Recipe.model_json_schema()
    found = []
    for name in all_keys():
        model: type[BaseModel] = Recipe
        *sections, last = name.split(".")
        for section in sections:
            model = _section_type(model.model_fields[section].annotation) or model
        own = schema["$defs"][model.__name__] if sections else schema
        field = model.model_fields[last]
        default = None if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
        found.append(Key(name, _values(own["properties"][last]), default, field.description or ""))
    return found


def _values(schema: Mapping[str, Any]) -> str:
    """`a | b`, `number > 0`, `integer >= 1 | null`, …"""
    if "anyOf" in schema:
        return " | ".join(_values(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    said = " and ".join(f"{sign} {_plain(schema[key])}" for key, sign in bounds.items() if key in schema)
    kind = {"array": "list", "object": "mapping", "string": "text"}.get(schema["type"], schema["type"])
    return f"{kind} {said}".strip()


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"
