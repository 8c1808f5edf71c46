"""`neuroada convert` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroada_cli.cli.options import OverwriteOption


def convert(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A model folder whose weights are pytorch_model*.bin.")
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder to write; default FOLDER-safetensors.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a model whose weights are only pickles as safetensors, once: nothing else here opens a pickle.

    \b
    neuroada convert opt-1.3b
    neuroada convert llama-7b-hf models/llama-7b
    """
    from neuroada_cli.commands import convert as command

    command.run(folder, out, overwrite=overwrite)
