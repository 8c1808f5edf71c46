"""Recipes drawn from the schema itself: valid ones read back the same, others are refused in one line.

(`hypothesis-jsonschema` would draw them, but its last release does not work with Hypothesis of today.)
"""

from __future__ import annotations

import tempfile
from collections import Counter
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from neuroada_cli.errors import RecipeError
from neuroada_cli.recipe.load import load_recipe, to_yaml
from neuroada_cli.recipe.schema import Recipe

SCHEMA = Recipe.model_json_schema()
WORDS = st.sampled_from(
    ["quickstart", "magnitude", "all-linear", "q_proj", "due_dates", "commonsense15k", "rte", "cpu", "reft",
     "bf16", "neuroada", "lora", "full", "1e-4", "no", "~", "a: b", "é", "\u2028", "x" * 500, "", " ", "\t",
     "../..", "/"]
)  # fmt: skip
HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just([]), st.just({}),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.sampled_from([10**400, -1, 0, 2**63, float("inf"), float("nan"), [[[[[]]]]]]),
)  # fmt: skip


def drawn(schema: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """What the schema allows, as far as a schema says it."""
    if "$ref" in schema:
        return drawn(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], depth)
    if "anyOf" in schema:
        return st.one_of([drawn(each, depth) for each in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    kind = schema["type"]
    if kind == "object" and "properties" in schema:
        keys = {name: drawn(each, depth + 1) for name, each in schema["properties"].items()}
        needed = schema.get("required", ())
        return st.fixed_dictionaries(
            {name: keys[name] for name in needed}, optional={n: s for n, s in keys.items() if n not in needed}
        )
    if kind == "object":
        return st.dictionaries(WORDS, drawn(schema["additionalProperties"]), max_size=2)
    if kind == "array":
        if "prefixItems" in schema:
            return st.tuples(*map(drawn, schema["prefixItems"])).map(list)
        return st.lists(drawn(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    simple = {
        "string": WORDS,
        "boolean": st.booleans(),
        "null": st.none(),
        "integer": st.integers(low, high if high is not None else (low or 0) + 1000),
        "number": st.floats(
            low, high, exclude_min="exclusiveMinimum" in schema, allow_nan=False, allow_infinity=False
        ),
    }
    return simple[kind]


def reloaded(text: str) -> Recipe:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return load_recipe(file.name)


def outcome(values: object) -> str:
    line = ""
    try:
        recipe = reloaded(yaml.safe_dump(values, allow_unicode=True))
    except RecipeError as error:
        line = error.line()
    if line:
        assert line.isprintable()
        assert len(line) < 1000
        return "refused"
    assert reloaded(to_yaml(recipe)) == recipe
    return "the same again"


def test_what_the_schema_allows_is_read_back_the_same_or_refused_in_one_line() -> None:
    """Refused: combinations, which a schema does not say."""
    found: Counter[str] = Counter()

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(drawn(SCHEMA))
    def check(values: object) -> None:
        found[outcome(values)] += 1

    check()
    assert min(found["refused"], found["the same again"]) > 20, found


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_one_hostile_value_anywhere_is_no_worse(data: DataObject) -> None:
    values = yaml.safe_load(to_yaml(load_recipe("quickstart")))
    section = data.draw(st.sampled_from(sorted(values)))
    place = values
    if isinstance(values[section], dict) and data.draw(st.booleans()):
        place, section = values[section], data.draw(st.sampled_from(sorted(values[section])))
    place[section] = data.draw(HOSTILE)
    outcome(values)
