"""The options of `neuroada train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuroada_cli.cli.options import (
    OWN_ROWS,
    DataDirOption,
    OverwriteOption,
    ProcessesOption,
    SetOption,
    bundled,
    in_ranks,
    launched,
    load,
    named_after,
)
from neuroada_cli.errors import RecipeError

if TYPE_CHECKING:
    from neuroada_cli.recipe.schema import Recipe


def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            autocompletion=bundled,
            help="A .yaml file, or the name of a bundled recipe; with --model and --data none is needed.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Model folder or hub id (model.path).")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="File or folder of training rows (data.train).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/NAME.")] = None,
    selection: Annotated[
        Path | None, typer.Option("--selection", help="A stored selection, instead of choosing anew.")
    ] = None,
    overrides: SetOption = [],  # noqa: B006
    data_dir: DataDirOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    extend: Annotated[
        bool,
        typer.Option("--extend", help="With --resume: to more steps or epochs, whatever the schedule."),
    ] = False,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show size, steps and memory; train nothing.")
    ] = False,
    preview: Annotated[
        int,
        typer.Option(
            "--preview", metavar="N", min=0, help="Show N rows as they will be learnt; train nothing."
        ),
    ] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="With --dry-run: every key of the recipe, defaults as well.")
    ] = False,
    merge: Annotated[
        bool | None,
        typer.Option(
            "--merge/--no-merge",
            help="Write the plain checkpoint to RUN/merged afterwards; without a RECIPE it is written.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what went wrong.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say every step and the end as a JSON object a line, on stdout.")
    ] = False,
    processes: ProcessesOption = None,
) -> None:
    """Train the chosen connections; checkpoints, metrics, a picture and a report go to runs/NAME.

    \b
    neuroada train --model path/to/model --data alpaca.json
    neuroada train commonsense15k --dry-run
    neuroada train my.yaml --preview 3
    neuroada train math10k --data-dir ~/data --set optim.lr=1e-3
    neuroada train math10k --resume
    neuroada train math10k --resume --extend --set train.epochs=2
    neuroada train my.yaml --processes 32 --dry-run
    neuroada train llama7b_math  # gpu, hub
    neuroada train my.yaml --processes 8  # gpu: one process on each
    torchrun --nproc-per-node 8 -m neuroada_cli train my.yaml  # gpu: the same
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d \\
        --rdzv-endpoint node0:29500 --rdzv-id RUN \\
        -m neuroada_cli train my.yaml  # gpu: four machines
    """
    if full and not dry_run:
        raise RecipeError("shows the recipe of a dry run", "--full", "add --dry-run")
    overrides = [*overrides, *named_after(recipe, model, data, out)]
    source = recipe or OWN_ROWS
    loaded = load(source, overrides, data_dir, out)
    merging = (recipe is None if merge is None else merge) and not (dry_run or preview)
    if merging:
        _refuse_unmergeable(loaded, asked=merge is True)
    if processes is not None and launched(context, processes, alone=dry_run, instead=("--no-merge",)):
        if merging:
            _merge(loaded.run_path, quiet or as_json)
        return
    from neuroada_cli.commands import train as command
    from neuroada_cli.recipe.origins import origins

    with in_ranks() as ranks:
        command.run(
            loaded,
            selection=selection,
            resume=resume,
            extend=extend,
            overwrite=overwrite,
            dry_run=dry_run,
            show_rows=preview,
            recipe_file=Path(source),
            ranks=ranks,
            processes=processes if dry_run else None,
            quiet=quiet,
            as_json=as_json,
            full=full,
            origins=origins(source, overrides, {"data.data_dir": data_dir, "run_dir": out}),
        )
    if merging and ranks.first:
        _merge(loaded.run_path, quiet or as_json)


def _refuse_unmergeable(recipe: Recipe, asked: bool) -> None:
    """Raises RecipeError before the training where what it learns cannot be merged."""
    from neuroada_cli.methods.facts import METHODS

    why = METHODS[recipe.train.method].unmergeable
    if why is not None:
        fix = "leave it out" if asked else "add --no-merge"
        raise RecipeError(f"train.method={recipe.train.method}: {why}", "--merge", fix)


def _merge(run_dir: Path, quiet: bool) -> None:
    from neuroada_cli.commands import merge as command

    command.run(run_dir, run_dir / "merged", overwrite=True, quiet=quiet)
