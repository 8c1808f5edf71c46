"""`neuroada recipes`: list, show and copy the recipes that come with the package."""

from __future__ import annotations

import re
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from neuroada_cli.errors import OutputError, RecipeError
from neuroada_cli.foreign_text import printable, shown
from neuroada_cli.recipe.keys import described_keys
from neuroada_cli.recipe.load import bundled_recipes, find_recipe, load_recipe, to_yaml

NAME_LINE = re.compile(r"^name:.*$", re.MULTILINE)


def list_all() -> None:
    """One line per bundled recipe: its name and what it does."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", style="cyan", no_wrap=True)
    table.add_column("what it does")
    for name in bundled_recipes():
        table.add_row(name, shown(load_recipe(name).description))
    console = Console()
    console.print(table)
    console.print(
        "\nneuroada recipes show NAME, neuroada train NAME, neuroada recipes copy NAME my.yaml", style="dim"
    )


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
    text = source.read_text(encoding="utf-8")
    files.write_text(target, NAME_LINE.sub(f"name: {_name_of(target)}", text, count=1))
    print(f"{target}: train it with `neuroada train {target}`")
    return target


def _name_of(target: Path) -> str:
    """What `Recipe.name` takes of a file's name."""
    return re.sub(r"[^\w.-]", "-", target.stem).lstrip(".-") or "mine"
