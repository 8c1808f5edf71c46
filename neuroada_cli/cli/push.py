"""`neuroada push` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroada_cli.cli.options import run_folder


def push(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A run, adapter or merged folder, or the recipe of a run.")
    ],
    hub_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The model repository on the hub.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The base's hub id, if it was trained from a local folder.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Folder of an `eval`; default: the one beside SOURCE.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository; default: the account's.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="A branch; default main.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be pushed.")] = False,
) -> None:
    """Share an adapter or a merged model on the hub: files, model card and scores, as one commit.

    \b
    neuroada push out/ me/smollm2-math --private  # hub
    neuroada push runs/llama7b_math me/math --base huggyllama/llama-7b  # hub
    """
    folder = run_folder(source)
    from neuroada_cli.commands import push as command

    told = command.run(folder, hub_id, base, results, private, revision, dry_run)
    if dry_run:
        typer.echo(f"\n{told.card}")
