"""`neuroada recipes`: list, show and copy the recipes that come with the package."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from neuroada_cli.errors import OutputError
from neuroada_cli.recipe import bundled_recipes, find_recipe, load_recipe, to_yaml


def list_all() -> None:
    """One line per bundled recipe: its name and what it does."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", style="cyan", no_wrap=True)
    table.add_column("what it does")
    for name in bundled_recipes():
        table.add_row(name, load_recipe(name).description)
    console = Console()
    console.print(table)
    console.print(
        "\nneuroada recipes show NAME, neuroada train NAME, neuroada recipes copy NAME my.yaml", style="dim"
    )


def show(name: str, resolved: bool = False) -> None:
    """Print a recipe as it was written, or with every default written out. Raises RecipeError."""
    text = to_yaml(load_recipe(name)) if resolved else find_recipe(name).read_text(encoding="utf-8")
    print(text, end="")


def copy(name: str, out: Path | None = None, overwrite: bool = False) -> Path:
    """Copy a recipe to `out` (a file or folder; default the current one). Raises RecipeError, OutputError."""
    from neuroada_cli.files import write_text

    source = find_recipe(name)
    target = out if out is not None else Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists() and not overwrite:
        raise OutputError("exists", str(target), "name another file, or add --overwrite")
    write_text(target, source.read_text(encoding="utf-8"))
    print(f"{target}: train it with `neuroada train {target}`")
    return target
