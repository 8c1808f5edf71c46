"""`neuroada bench` on the command line: a step beside its peers, or (`--suite`) whole experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroada_cli.cli.options import (
    DataDirOption,
    DeviceOption,
    Dtype,
    SetOption,
    given_options,
    load,
    parse_bytes,
    parse_counts,
    refuse_idle,
    split,
    suite_overrides,
)
from neuroada_cli.errors import RecipeError

OF_SUITES = ("--out", "--jobs", "--keep-runs", "--reuse")


def _suites(begun: str) -> list[str]:
    from neuroada_cli.suites.schema import bundled_suites

    return [name for name in bundled_suites() if name.startswith(begun)]


def bench(
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Measure this recipe's model and K.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Without a recipe: a built-in shape with random weights.")
    ] = "smollm2-135m",
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Use only so many blocks.")] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="A,B",
            help="Peers: mask, full, scatter, lora, dora, …; default mask, on a quantised base lora.",
        ),
    ] = None,
    k: Annotated[
        str | None,
        typer.Option("--k", metavar="N,M", help="Connections per neuron; default: the recipe's, or 1."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows per step.")] = 4,
    sequence: Annotated[int, typer.Option("--seq", min=2, help="Tokens per row.")] = 256,
    real_rows: Annotated[
        bool, typer.Option("--real-rows", help="The recipe's own training rows, instead of random tokens.")
    ] = False,
    data_dir: DataDirOption = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds measured.")] = 8,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Rounds left out first.")] = 2,
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", help="Of the weights; default: the recipe's, or fp32.")
    ] = None,
    device: DeviceOption = None,
    memory_budget: Annotated[
        str | None, typer.Option("--memory-budget", help="Like 40GB: also find the largest batch that fits.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            metavar="NAME",
            help="Run an experiment over recipes, methods and seeds.",
            autocompletion=_suites,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Of a suite; default runs/suites/NAME.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Of a suite: runs at once.")] = 1,
    keep_runs: Annotated[
        bool, typer.Option("--keep-runs", help="Of a suite: keep the checkpoints of finished runs.")
    ] = False,
    reuse: Annotated[
        Path | None,
        typer.Option("--reuse", metavar="FILE", help="Of a suite: take equal runs from this results.json."),
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot_out: Annotated[Path | None, typer.Option("--plot", help="Draw time against memory here.")] = None,
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Time and memory of a training step against its peers and the frozen floor, in the same run.

    \b
    neuroada bench --compare mask
    neuroada bench commonsense15k --real-rows --batch 16
    neuroada bench --model llama-7b --layers 2 --k 1,20 --compare mask,lora --plot bench.png
    neuroada bench --suite glue --jobs 2  # hours
    """
    if suite is not None:
        refuse_idle(context, "--suite", *OF_SUITES, "--set", "--data-dir")
        from neuroada_cli.suites.schema import load_suite

        wanted, extra = load_suite(suite), suite_overrides(overrides, data_dir)
        from neuroada_cli.suites import runner

        runner.run(wanted, out, extra, jobs, keep_runs, reuse)
        return
    for option in given_options(context) & {*OF_SUITES}:
        raise RecipeError("is of a suite", option, "add --suite NAME")
    idle = {"--set", "--data-dir", "--real-rows"} if recipe is None else {"--model", "--layers"}
    for option in given_options(context) & idle:
        if recipe is None:
            raise RecipeError("has nothing to do without a recipe", option, "name a recipe")
        raise RecipeError(
            "is of built-in shapes, and a recipe names its model", option, "leave one of them out"
        )
    if real_rows and "--seq" in given_options(context):
        raise RecipeError("real rows have their own lengths", "--seq", "leave one of them out")
    if data_dir is not None and not real_rows:
        raise RecipeError("random tokens come from nowhere", "--data-dir", "add --real-rows")
    loaded = load(recipe, overrides, data_dir) if recipe is not None else None
    counts = parse_counts(k, "--k") if k is not None else None
    budget = parse_bytes(memory_budget, "--memory-budget")
    from neuroada_cli.commands import bench as command

    command.run(
        recipe=loaded,
        model=model,
        layers=layers,
        compare=tuple(split(compare)) if compare is not None else None,
        k=counts,
        batch=batch,
        sequence=sequence,
        rounds=rounds,
        warmup=warmup,
        dtype=dtype,
        device=device,
        json_out=json_out,
        plot_out=plot_out,
        memory_budget=budget,
        real_rows=real_rows,
    )
