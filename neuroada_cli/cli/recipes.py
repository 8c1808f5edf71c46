"""The subcommands of `neuroada recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroada_cli.cli.options import RecipeArgument

recipes_app = typer.Typer(invoke_without_command=True, rich_markup_mode="rich")


@recipes_app.callback()
def _recipes(context: typer.Context) -> None:
    """List, show and copy the recipes that come with neuroada.

    \b
    neuroada recipes
    neuroada recipes copy math10k my.yaml
    """
    if context.invoked_subcommand is None:
        list_recipes()


@recipes_app.command(name="ls")
def list_recipes() -> None:
    """List the bundled recipes with what they do, by what they run on, and the suites of experiments."""
    from neuroada_cli.commands import recipes as command
    from neuroada_cli.suites.schema import bundled_suites, load_suite

    command.list_all({name: load_suite(name).description for name in bundled_suites()})


@recipes_app.command(name="show")
def show_recipe(
    name: RecipeArgument,
    resolved: Annotated[bool, typer.Option("--resolved", help="With every default written out.")] = False,
) -> None:
    """Print a recipe."""
    from neuroada_cli.commands import recipes as command

    command.show(name, resolved=resolved)


@recipes_app.command(name="schema")
def recipe_schema(
    suite: Annotated[bool, typer.Option("--suite", help="Of a suite file, for `bench --suite`.")] = False,
) -> None:
    """The JSON Schema of a recipe: editors complete and check keys by it.

    \b
    neuroada recipes schema > recipe.schema.json
    neuroada recipes schema --suite > suite.schema.json
    """
    from neuroada_cli.commands import recipes as command
    from neuroada_cli.recipe.schema import Recipe
    from neuroada_cli.suites.schema import Suite

    command.schema(Suite if suite else Recipe)


@recipes_app.command(name="keys")
def recipe_keys(
    part: Annotated[str, typer.Argument(metavar="PART", help="Only keys that contain this.")] = "",
) -> None:
    """Every key of a recipe: what it takes, its default, what it means.

    \b
    neuroada recipes keys optim
    """
    from neuroada_cli.commands import recipes as command

    command.keys(part)


@recipes_app.command(name="paper")
def paper_tables(
    runs: Annotated[Path, typer.Option("--runs", help="Folder of our runs, by recipe name.")] = Path("runs"),
) -> None:
    """The paper's tables with our scores beside them, from the result files of `eval`.

    \b
    neuroada recipes paper --runs runs
    """
    from neuroada_cli.commands import paper as command

    command.paper(runs)


@recipes_app.command(name="copy")
def copy_recipe(
    name: RecipeArgument,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="Default: ./NAME.yaml.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Copy a bundled recipe to start your own from."""
    from neuroada_cli.commands import recipes as command

    command.copy(name, out, overwrite=overwrite)
