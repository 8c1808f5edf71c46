"""`neuroada bench`: time and memory of a training step beside its peers and the frozen floor, in one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from neuroada_cli import files, hub
from neuroada_cli.benchmarking import peers, shapes, tables
from neuroada_cli.benchmarking.measure import BenchPlan, Subject, all_targets, measure, settings_of
from neuroada_cli.benchmarking.rows import BenchRow, as_json
from neuroada_cli.benchmarking.steps import RealRows
from neuroada_cli.errors import RecipeError, ResourceError
from neuroada_cli.foreign_text import shown
from neuroada_cli.hub.stored import own_dtype
from neuroada_cli.machine.load import machine
from neuroada_cli.show.figures import check_name, drawn
from neuroada_cli.show.notes import say

if TYPE_CHECKING:  # so that built-in shapes need neither pydantic nor PyYAML (`benchmarks/gpu.py`)
    from neuroada_cli.recipe.schema import ModelSection, Recipe

NOISY = 0.1  # spread between the quartiles of a ratio that makes it worthless


@dataclass(frozen=True)
class BenchResult:
    """rows in the table's order; settings and machine are those of every row."""

    rows: list[BenchRow]
    settings: dict[str, Any]
    machine: dict[str, Any]

    def as_json(self) -> list[dict[str, Any]]:
        return as_json(self.rows, self.settings, self.machine)


def run(
    recipe: Recipe | None = None,
    model: str = "smollm2-135m",
    layers: int | None = None,
    compare: tuple[str, ...] | None = None,
    k: tuple[int, ...] | None = None,
    batch: int = 4,
    sequence: int = 256,
    rounds: int = 8,
    warmup: int = 2,
    dtype: str | None = None,
    device: str | None = None,
    json_out: Path | None = None,
    plot_out: Path | None = None,
    memory_budget: int | None = None,
    real_rows: bool = False,
    quiet: bool = False,
) -> BenchResult:
    """Measure NeuroAda at every K, the peers in `compare` and the floor; print, and write what is asked for.

    recipe         its model, targets, K, data type and device, instead of a built-in shape
    compare        None: mask; on a quantised base, where mask cannot train, lora
    model, layers  a built-in shape with random weights, cut to so many blocks
    k, dtype       None: the recipe's, else 1 and fp32
    real_rows      train on the recipe's first rows at their own lengths, not on random tokens
    memory_budget  bytes; adds the largest batch that fits and its samples per second
    Raises RecipeError, ModelError, OutputError (unwritable names) before anything is built, ResourceError.
    """
    quantization = recipe.model.quantization if recipe else None
    if compare is None:
        compare = ("mask",) if quantization is None else ("lora",)
    peers.check_names(compare, quantization)
    _check_outputs(json_out, plot_out)
    device = hub.choose_device(device or (recipe.device if recipe else None))
    dtype = dtype or (_dtype_of(recipe.model) if recipe else "fp32")
    ks = k or ((recipe.select.k,) if recipe else (1,))
    plan = BenchPlan(
        compare, ks, batch, sequence, rounds, warmup, device, hub.TORCH_DTYPES[dtype], memory_budget
    )
    if real_rows or _of_pictures(recipe):  # no picture is made of random numbers
        if recipe is None:
            raise RecipeError("a built-in shape has no rows", "--real-rows", "name a recipe")
        real = _real_rows(recipe)
        longest = int(real.batch(batch, "cpu").tokens_BS.shape[1])
        plan = dataclasses.replace(plan, real=real, sequence=longest)
    with _progress(quiet) as tell, _memory_advice():
        tell("building the model")
        subject = _from_recipe(recipe, layers, plan) if recipe else _built_in(model, layers, plan)
        rows = measure(subject, plan, tell)
    settings = settings_of(subject, plan, dtype) | {"quantization": quantization}
    result = BenchResult(rows, settings, machine())
    if not quiet:
        _show(result, subject)
    if json_out is not None:
        files.write_json(json_out, result.as_json())
    if plot_out is not None:
        drawn(lambda: tables.draw(rows, _title(settings), plot_out), plot_out, asked_for=True)
    written = {"figures": json_out, "picture": plot_out}
    for what, path in written.items():
        if path is not None and not quiet:
            say(Console(), f"{what} in {shown(path)}")
    return result


def _of_pictures(recipe: Recipe | None) -> bool:
    if recipe is None:
        return False
    from neuroada_cli.tasks.registry import recipe_task

    return recipe_task(recipe.data).pictures


def _check_outputs(json_out: Path | None, plot_out: Path | None) -> None:
    """An output that cannot be written is told before minutes of measuring."""
    check_name(plot_out, "--plot")
    if json_out is not None:
        files.require_place(json_out, "--json")


def _dtype_of(settings: ModelSection) -> str:
    """The recipe's data type, else the base's own."""
    if settings.dtype is not None:
        return settings.dtype
    folder = hub.resolve_model(settings.path, settings.revision, settings.trust_remote_code)
    return own_dtype(hub.open_weights(folder))


def _built_in(model: str, layers: int | None, plan: BenchPlan) -> Subject:
    _check_length(plan, shapes.check(model, layers).sizes["max_position_embeddings"])
    built = shapes.build(model, layers, plan.dtype, plan.device)
    return Subject(model, built.model, all_targets(built.model), built.kind, built.layers, built.depth)


def _from_recipe(recipe: Recipe, layers: int | None, plan: BenchPlan) -> Subject:
    if layers is not None:
        raise RecipeError("cuts built-in shapes, not the model of a recipe", "--layers", "use --model")
    from neuroada_cli.tasks.registry import recipe_task

    task = recipe_task(recipe.data)
    settings = recipe.model
    folder = hub.resolve_model(settings.path, settings.revision, settings.trust_remote_code)
    model_task = hub.model_task(folder, task.work, settings.trust_remote_code)
    _check_length(
        plan, hub.open_base(folder, model_task, task.num_labels, settings.trust_remote_code).positions
    )
    model = hub.load_model(
        folder, model_task, plan.dtype, plan.device, num_labels=task.num_labels,
        attention=settings.attention, seed=recipe.seed, trust_remote_code=settings.trust_remote_code,
        quantization=settings.quantization,
    ).model  # fmt: skip
    select = recipe.select
    try:
        targets = all_targets(model, select.targets, select.exclude, select.layers)
    except ValueError as error:
        raise RecipeError(str(error), "select") from None
    depth = int(getattr(model.config, "num_hidden_layers", 0))
    return Subject(settings.path, model, targets, task.kind, depth, depth, model_task)


def _real_rows(recipe: Recipe) -> RealRows:
    from neuroada_cli.tasks.registry import recipe_task
    from neuroada_cli.training.rows import prepare

    settings = recipe.model
    folder = hub.resolve_model(settings.path, settings.revision, settings.trust_remote_code)
    task = recipe_task(recipe.data)
    model_task = hub.model_task(folder, task.work, settings.trust_remote_code)
    reader = hub.load_reader(folder, model_task, settings.trust_remote_code, task.pictures)
    rows = prepare(recipe.data, task, reader, recipe.seed)
    return RealRows(rows.data.train, rows.data.pad_id, rows.train_source, rows.data.features)


def _check_length(plan: BenchPlan, longest: int | None) -> None:
    if longest is not None and plan.sequence > longest:
        raise RecipeError(
            f"{plan.sequence} tokens per row, but the model has {longest} positions", "--seq", "give fewer"
        )


def _title(settings: dict[str, Any]) -> str:
    whole = settings["layers"] == settings["of_layers"]
    cut = "" if whole else f", {settings['layers']} of {settings['of_layers']} blocks"
    upto = "" if settings["rows"] == "random tokens" else "up to "
    size = f"{settings['batch']} x {upto}{settings['sequence']} tokens"
    if not settings["sequence"]:
        size = f"{settings['batch']} pictures"
    packed = f" over {settings['quantization']}" if settings["quantization"] else ""
    return f"{settings['model']}{cut}, {settings['dtype']}{packed}, {size}, {settings['device']}"


def _show(result: BenchResult, subject: Subject) -> None:
    console = Console()
    console.print(tables.table(result.rows, _title(result.settings), subject.parameters))
    notes = [
        "/ floor: step time over the same model's, frozen, with gradients down to its embeddings; median of "
        f"{result.settings['rounds']} interleaved rounds.",
        "pred.: how far the memory predicted without weights is off."
        if result.settings["quantization"] is None
        else "Memory on a quantised base is measured, not predicted.",
    ]
    widest = max((row.ratio_high - row.ratio_low, row.label) for row in result.rows)
    if widest[0] > NOISY:
        notes.append(
            f"The rounds disagree (by {widest[0]:.2f} for {widest[1]}): the machine is busy, or "
            "a step too short to time. Do not trust these ratios."
        )
    if (budget := result.settings["memory_budget"]) is not None:
        console.print(tables.budget_table(result.rows, budget))
    if subject.layers != subject.depth:
        notes.append(
            f"{subject.layers} of {subject.depth} blocks: embeddings and vocabulary weigh more than in the "
            "whole model, so ratios are nearer to 1, and memory does not scale with the blocks alone."
        )
    for note in notes:
        console.print(note, style="dim")


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """A status line on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda _: None
        return
    with console.status("") as status:
        yield status.update


@contextmanager
def _memory_advice() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError | torch.OutOfMemoryError) and "memory" not in str(error).lower():
            raise
        raise ResourceError(
            "out of memory", "bench", "give fewer --layers, a smaller --batch or --seq, or fewer methods"
        ) from error
