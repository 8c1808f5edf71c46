"""The `neuroada` command: reads the command line, runs one command, turns failures into one line.

Every command imports what it needs when it runs, and only after its recipe was read: `neuroada --help` and
a mistake in a recipe are answered at once, without torch. What a command does lies in
`neuroada_cli.commands`; here are only its options.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from neuroada_cli import __version__, failures, stopping
from neuroada_cli.cli.bench import bench
from neuroada_cli.cli.convert import convert
from neuroada_cli.cli.evaluate import eval_
from neuroada_cli.cli.export import export
from neuroada_cli.cli.generate import chat, generate
from neuroada_cli.cli.merge import merge
from neuroada_cli.cli.options import (
    DataDirOption,
    OverwriteOption,
    RecipeArgument,
    SetOption,
    given_options,
    load,
    refuse_idle,
    split,
)
from neuroada_cli.cli.push import push
from neuroada_cli.cli.recipes import recipes_app
from neuroada_cli.cli.train import train
from neuroada_cli.cli.unknown import explained
from neuroada_cli.errors import RecipeError, ResourceError
from neuroada_cli.machine import collector, kernels, threads
from neuroada_cli.ranks.place import several
from neuroada_cli.recipe.types import with_short_types

IN_SEVERAL = ("train", "eval")  # what may run in several processes

app = typer.Typer(
    name="neuroada",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(recipes_app, name="recipes")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"neuroada {__version__}")
        raise typer.Exit


@app.callback()
def _neuroada(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Works behind a command, too.")
    ] = False,
) -> None:
    """Fine-tune a language model by a few weights per neuron, and merge them into a plain checkpoint.

    \b
    New here?   neuroada quickstart
    Usual way:  neuroada train RECIPE  →  neuroada merge runs/NAME OUT  →  neuroada eval OUT
    """
    if several() and context.invoked_subcommand not in IN_SEVERAL:
        raise ResourceError(
            f"{context.invoked_subcommand} runs in one process, and was started in several",
            "WORLD_SIZE",
            f"start it without torchrun (only {' and '.join(IN_SEVERAL)} run in several)",
        )


@app.command()
def quickstart(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run; default runs/quickstart.")
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="Another recipe for the same tour.")] = "quickstart",
    overrides: SetOption = [],  # noqa: B006  (typer copies it)
    data_dir: DataDirOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """The whole route on a real model in a few minutes: select, train, merge, and score each stage.

    \b
    neuroada quickstart
    neuroada quickstart --set select.k=4 --set train.max_steps=40
    neuroada quickstart --set model.path=path/to/model --out runs/mine
    """
    loaded = load(recipe, overrides, data_dir, out)
    from neuroada_cli.commands import quickstart as tour

    # the default folder is the tour's own, so a second tour may replace the first
    tour.run(loaded, overwrite=overwrite or out is None)


@app.command()
def select(
    context: typer.Context,
    recipe: RecipeArgument,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default runs/NAME/selection.safetensors.")
    ] = None,
    overrides: SetOption = [],  # noqa: B006
    data_dir: DataDirOption = None,
    compare: Annotated[
        str | None,
        typer.Option("--compare", metavar="A,B", help="Criteria or files: what they have in common."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw here how neurons share inputs; with --compare: what is in common."),
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="With --compare: a row for every layer, not for every kind.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Choose the K inputs that each neuron may train, and store them (`train` does it, too, if need be).

    \b
    neuroada select commonsense15k
    neuroada select my.yaml --set select.k=4 --out k4.safetensors --plot k4.png
    neuroada select minilm_rte --compare magnitude,gradient,lift --plot overlap.png
    """
    for option in given_options(context) & {"--per-layer"} if compare is None else ():
        raise RecipeError("shows a comparison", option, "add --compare magnitude,gradient")
    if compare is not None and out is not None:
        raise RecipeError("stores one selection, and --compare stores none", "--out", "leave one of them out")
    if compare is not None:
        refuse_idle(context, "--compare", "RECIPE", "--plot", "--per-layer", "--set", "--data-dir")
    loaded = load(recipe, overrides, data_dir)
    from neuroada_cli.commands import select as command

    if compare is not None:
        command.compare(loaded, split(compare), plot, per_layer)
        return
    command.run(loaded, out=out, overwrite=overwrite, plot=plot)


app.command(name="train")(train)


app.command()(merge)
app.command(name="eval")(eval_)
app.command()(generate)
app.command()(chat)
app.command(name="bench")(bench)
app.command(name="convert")(convert)
app.command(name="export")(export)
app.command()(push)


@app.command()
def validate(
    recipe: RecipeArgument,
    overrides: SetOption = [],  # noqa: B006
    data_dir: DataDirOption = None,
    preview: Annotated[
        int,
        typer.Option("--preview", metavar="N", min=0, help="Show N rows as they will be learnt, too."),
    ] = 0,
) -> None:
    """Check a recipe without running it, and say what it would do.

    \b
    neuroada validate my.yaml
    neuroada validate math10k --set optim.lr=1e-3
    """
    loaded = load(recipe, overrides, data_dir)
    from neuroada_cli.commands import validate as command

    command.run(loaded, preview)


@app.command()
def env() -> None:
    """One screen about this machine and its packages, to paste into a bug report."""
    from neuroada_cli.commands import env as command

    command.run()


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its code. `--debug` may stand anywhere in it.

    args  instead of the process's own, whose signals are then left alone
    """
    if args is None:
        stopping.install()
        collector.spare()
    kernels.keep_out()
    threads.wait_briefly()
    given = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in given
    try:
        words = with_short_types([word for word in given if word != "--debug"])
        code = _command()(words, prog_name="neuroada", standalone_mode=False)
        sys.stdout.flush()  # a reader that has gone is noticed here, not at the interpreter's end
    except BaseException as error:
        speaks = not several() or _speaks(error)
        code = failures.report(explained(error), debug, speaks)
        if several():  # what other threads still wait for is lost with the process that it should come from
            sys.stderr.flush()
            if speaks:
                _told()
            os._exit(code)
    sys.exit(code if isinstance(code, int) else 0)


def _command() -> Any:
    """The command line, whose help does not write `<bool>` behind a switch as if it took a value."""
    command = typer.main.get_command(app)
    pending: list[tuple[Any, typer.Context | None]] = [(command, None)]
    while pending:
        here, above = pending.pop()
        context = typer.Context(here, parent=above, **here.context_settings)
        pending += [(below, context) for below in getattr(here, "commands", {}).values()]
        for parameter in here.get_params(context):  # with --help
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
    return command


def _speaks(error: BaseException) -> bool:
    """Of several processes that end for one reason, whether this one tells it."""
    try:
        from neuroada_cli.ranks.group import speaks
    except ImportError:  # torch is what cannot be imported
        return True
    return speaks(error)


def _told() -> None:
    with contextlib.suppress(ImportError):
        from neuroada_cli.ranks.group import told

        told()
