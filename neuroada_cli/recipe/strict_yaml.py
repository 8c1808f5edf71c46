"""YAML for settings: strict, small, with line numbers. Knows only PyYAML.

Whatever is wrong is a RecipeError with file and line, before any object is built from hostile input.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from neuroada_cli.errors import RecipeError, unreadable

MAX_BYTES = 256 * 1024
MAX_DEPTH = 12


def read(file: Path, where: str) -> str:
    """The text of a settings file. Raises RecipeError when it is too large, not UTF-8, or cannot be read."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise RecipeError(f"larger than {MAX_BYTES // 1024} KiB", where, "is this a recipe?")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError("not UTF-8 text", where, "save it as UTF-8") from None
    except OSError as error:
        raise unreadable(error, where, RecipeError) from None


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a float and refuses duplicate keys, anchors and tags."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a plain word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 wants a dot in a float, so `1e-4` would be a string, and counts in eights and sixties: `010` would
# be 8 and `12:30` 750. These are YAML 1.2's rules; the words for true and false stay those of 1.1.
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    _INT, re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"), list("-+0123456789")
)
_StrictLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)

Lines = dict[tuple[str, ...], int]


def _refuse_tricks(text: str, where: str) -> None:
    """Depth, anchors and tags are checked on the event stream, before any object is built."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = f"{where}:{event.start_mark.line + 1}" if event.start_mark else where
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise RecipeError("anchors and aliases are not used in recipes", line, "write the value out")
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None):
            raise RecipeError(f"the tag {event.tag} is not allowed", line, "write a plain value")  # type: ignore[attr-defined]
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise RecipeError(f"nested deeper than {MAX_DEPTH} levels", line, "flatten the recipe")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def parse(text: str, where: str) -> tuple[Any, Lines]:
    """(the value, line of every key and list entry by its path). Raises RecipeError with `where:line`."""
    if re.search(r"[\[{]{64}|(- ){64}", text):  # the pure-Python parser recurses on these
        raise RecipeError(f"nested deeper than {MAX_DEPTH} levels", where, "flatten the recipe")
    try:
        _refuse_tricks(text, where)
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            lines: Lines = {}
            if node is not None:
                _collect_lines(node, (), lines)
            return (loader.construct_document(node) if node is not None else None), lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise RecipeError(f"not valid YAML: {error.problem or error}", place) from None
    except (yaml.YAMLError, ValueError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        # PyYAML's own slips on hostile input (a date of month 13, a lone surrogate) end here too
        raise RecipeError(f"not valid YAML: {error}", where) from None


def _collect_lines(node: yaml.Node, path: tuple[str, ...], lines: Lines) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, str(key.value))
            lines[child] = key.start_mark.line + 1
            _collect_lines(value, child, lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*path, str(i))] = value.start_mark.line + 1
            _collect_lines(value, (*path, str(i)), lines)
