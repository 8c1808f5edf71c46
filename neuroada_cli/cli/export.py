"""`neuroada export` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroada_cli.cli.options import BaseOption, Dtype, OverwriteOption, TrustOption, look_at_base, run_folder
from neuroada_cli.export.formats import FORMATS
from neuroada_cli.files.folders import is_adapter, is_model


def _formats(begun: str) -> list[str]:
    return [name for name in FORMATS if name.startswith(begun)]


def export(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A run or adapter folder, or the recipe of a run."),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="Folder to write; default RUN/FORMAT (ADAPTER-FORMAT)."),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help=f"{', '.join(FORMATS)}.", autocompletion=_formats)
    ] = "",
    base: BaseOption = None,
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", help="Of whole models and patches; default: as trained.")
    ] = None,
    trust_remote_code: TrustOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Write an adapter, or the model merged with it, as others read it: stock PEFT, vLLM, llama.cpp, …

    \b
    neuroada export runs/math10k --to peft-supertuning
    neuroada export runs/math10k patch/ --to vllm-sparse
    neuroada export runs/math10k gguf/ --to gguf --dtype fp16
    """
    folder = run_folder(source)
    inside = not is_adapter(folder) and not is_model(folder)
    look_at_base(folder, base)
    from neuroada_cli.commands import export as command

    command.run(
        folder,
        out or (folder / to if inside else folder.with_name(f"{folder.name}-{to}")),
        to,
        base=base,
        dtype=dtype,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
