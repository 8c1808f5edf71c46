"""`neuroada merge` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroada_cli.cli.options import (
    BaseOption,
    OverwriteOption,
    TrustOption,
    look_at_base,
    merged_default,
    parse_bytes,
    run_folder,
    split,
)
from neuroada_cli.errors import RecipeError
from neuroada_cli.files.folders import is_adapter, is_run
from neuroada_cli.machine import kernels


def merge(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE [OUT]",
            help="A run or adapter folder, or the recipe of a run; then the folder to write, default "
            "RUN/merged (ADAPTER-merged). With --weights: several sources.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; needed for several sources.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="A,B", help="Add several adapters, each times its number, like 1,0.5."
        ),
    ] = None,
    base: BaseOption = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="bf16, fp16 or fp32; default: as trained."),
    ] = None,
    onto: Annotated[
        str,
        typer.Option(
            "--onto",
            metavar="WHICH",
            help="Quantised base: onto its 16-bit `original`, or `dequantized`, as training saw it.",
        ),
    ] = "original",
    max_shard_size: Annotated[
        str | None, typer.Option("--max-shard-size", help="Like 5GB; default: the base's own shards.")
    ] = None,
    trust_remote_code: TrustOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Fold the trained connections into a plain Hugging Face checkpoint that needs no code of ours.

    \b
    neuroada merge runs/math10k out/
    neuroada merge runs/math10k/checkpoint-500 out/ --dtype fp16 --max-shard-size 2GB
    neuroada merge runs/math runs/commonsense --weights 1,0.5 --out out/
    """
    sources, out = _sources(paths, out, weights is not None)
    factors = None if weights is None else _numbers(weights)
    folders, shard = (
        [run_folder(source) for source in sources],
        parse_bytes(max_shard_size, "--max-shard-size"),
    )
    for folder in folders:
        look_at_base(folder, base)
    if trust_remote_code:
        kernels.let_in()
    from neuroada_cli.commands import merge as command

    command.run(
        folders if factors is not None else folders[0],
        out if out is not None else merged_default(folders[0]),
        base=base,
        onto=onto,
        dtype=dtype,
        max_shard_bytes=shard,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        weights=factors,
    )


def _sources(paths: list[str], out: Path | None, weighted: bool) -> tuple[list[str], Path | None]:
    """What to merge, and where to. Raises RecipeError for what could mean two things."""
    if weighted:
        if out is None and len(paths) > 1:
            raise RecipeError(
                "needs --out: with --weights every folder that is named is a source", "merge", "add --out OUT"
            )
        return paths, out
    if len(paths) > 2 or (len(paths) == 2 and out is not None):
        raise RecipeError(
            f"{len(paths)} folders and no --weights",
            "merge",
            "SOURCE OUT for one adapter; A B --weights 1,1 --out OUT adds several",
        )
    if len(paths) == 2 and _is_source(Path(paths[1])):
        raise RecipeError(
            f"{paths[1]} holds an adapter already, so nothing is written there",
            "merge",
            "--weights 1,1 --out OUT adds the two; for one of them name another folder",
        )
    return paths[:1], Path(paths[1]) if len(paths) == 2 else out


def _is_source(folder: Path) -> bool:
    """Whether it is a run or an adapter: whoever names it as the folder to write means to merge it, too."""
    return is_adapter(folder) or is_run(folder)


def _numbers(text: str) -> list[float]:
    try:
        found = [float(word) for word in split(text)]
    except ValueError:
        found = []
    if not found or any(number != number or number in (float("inf"), -float("inf")) for number in found):
        raise RecipeError(f"{text!r} is not a list of numbers", "--weights", "write e.g. 1,0.5")
    return found
