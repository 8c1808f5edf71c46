"""`neuroada eval` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from neuroada_cli.cli.options import (
    BaseOption,
    DataDirOption,
    DeviceOption,
    Dtype,
    OverwriteOption,
    ProcessesOption,
    SetOption,
    TrustOption,
    given_options,
    in_ranks,
    launched,
    load,
    look_at_base,
    look_at_model,
    refuse_idle,
    split,
)
from neuroada_cli.errors import RecipeError
from neuroada_cli.machine import kernels

ONLY_HARNESS = {"--include-path", "--num-fewshot", "--apply-chat-template"}
WITH_HARNESS = (
    "TARGET", "--out", "--base", "--limit", "--batch-size", "--device", "--dtype", "--trust-remote-code",
    "--overwrite", *ONLY_HARNESS,
)  # fmt: skip


def eval_(
    context: typer.Context,
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="A model, adapter or run folder, or a hub id.")
    ] = None,
    tasks: Annotated[
        str, typer.Option("--tasks", metavar="A,B", help="Tasks to score; default: those of the recipe.")
    ] = "",
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Recipe with the settings; default: the one of the run.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="Prompts and scoring rules; default: reft.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", help="Score this JSONL: instruction, prediction and answer a row."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Results folder; default TARGET/eval.")] = None,
    overrides: SetOption = [],  # noqa: B006
    data_dir: DataDirOption = None,
    forgetting: Annotated[
        str | None,
        typer.Option(
            "--forgetting", metavar="SOURCE", help="Loss on this general text, before and after tuning."
        ),
    ] = None,
    base: BaseOption = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N rows a task.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Rows at once.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Default: the protocol's own number.")
    ] = None,
    device: DeviceOption = None,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="Load the weights as this.")] = None,
    trust_remote_code: TrustOption = False,
    overwrite: OverwriteOption = False,
    processes: ProcessesOption = None,
    harness: Annotated[
        str | None,
        typer.Option("--harness", metavar="A,B", help="Tasks of lm-evaluation-harness instead of ours."),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", help="With --harness: a folder of your own task files.")
    ] = None,
    fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="With --harness: worked examples in front.")
    ] = None,
    engine: Annotated[
        Literal["vllm"] | None,
        typer.Option("--engine", help="Let vLLM write the answers of a plain or merged folder (a GPU)."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--apply-chat-template", help="With --harness: prompts as turns of a chat.")
    ] = False,
) -> None:
    """Score a base model, an adapter or a merged folder by the papers' own rules.

    \b
    neuroada eval out/ --tasks boolq,piqa
    neuroada eval runs/math10k --limit 200 --set eval.decoding=sampling
    neuroada eval runs/math10k --forgetting general.txt
    neuroada eval --predictions theirs.jsonl --protocol reft
    neuroada eval out/ --harness hellaswag,arc_easy  # hub: their rows
    neuroada eval runs/math10k --processes 8  # gpu
    """
    names = tuple(split(tasks))
    if predictions is not None:
        refuse_idle(context, "--predictions", "--tasks", "--protocol", "--out", "--overwrite")
        if overwrite and out is None:
            raise RecipeError("replaces what lies in --out", "--overwrite", "name one with --out")
        if len(names) > 1:
            raise RecipeError("scores one task", "--predictions", "name one with --tasks, or none")
        from neuroada_cli.commands import predictions as foreign

        foreign.run(predictions, names[0] if names else None, protocol or "reft", out, overwrite)
        return
    if target is None:
        raise RecipeError("nothing to score", "eval", "name a model folder, a run folder or a hub id")
    look_at_model(target)
    look_at_base(target, base)
    if harness is not None:
        refuse_idle(context, "--harness", *WITH_HARNESS)
        if trust_remote_code:
            kernels.let_in()
        from neuroada_cli.commands import harness as by_harness
        from neuroada_cli.evaluation.harness import Asked

        own = None if include_path is None else str(include_path)
        asked = Asked(tuple(split(harness)), own, fewshot, limit, chat, batch_size or Asked.batch_size)
        by_harness.run(target, asked, out, device, dtype, base, overwrite, trust_remote_code)
        return
    for given in sorted(given_options(context) & ONLY_HARNESS):
        raise RecipeError("has no effect without --harness", given, "name its tasks, or leave it out")
    loaded = load(recipe, overrides, data_dir) if recipe is not None else None
    if trust_remote_code:
        kernels.let_in()
    if processes is not None and launched(context, processes):
        return
    from neuroada_cli.commands import eval as command

    with in_ranks() as ranks:
        command.run(
            target,
            recipe=loaded,
            forgetting=forgetting,
            base=base,
            engine=engine,
            overrides=overrides if loaded is None else (),
            tasks=names,
            protocol=protocol,
            out=out,
            data_dir=str(data_dir) if data_dir is not None else None,
            limit=limit,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            device=device,
            dtype=dtype,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            ranks=ranks,
        )
