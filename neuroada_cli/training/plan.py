"""What a run is going to do, told before it does it: size, steps, data, a row with its loss mask, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from torch import nn

from neuroada_cli import hub, memory
from neuroada_cli.data.batch import preview
from neuroada_cli.delta.layout import layer_shape
from neuroada_cli.errors import RecipeError
from neuroada_cli.foreign_text import printable, shown
from neuroada_cli.methods import ADAPTERS, BY_SELECTION, build
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.show.numbers import share
from neuroada_cli.training.rows import PreparedRows

PREVIEW_CHARACTERS = 1200


@dataclass(frozen=True)
class Plan:
    """trainable and total count parameters (a fresh head is known only once the model is loaded).

    stored_k  layer -> connections kept per neuron: a layer's rows are as long as its longest. None where that
              is known only once weights were read, or nothing is trained by connections
    """

    trainable: int
    total: int
    steps: int
    stored_k: Mapping[str, int] | None = None


def check_positions(skeleton: nn.Module, longest: int) -> None:
    """Raises RecipeError when a row is longer than the positions that the model has."""
    config = skeleton.config
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if limit is None:
        return
    for name, module in skeleton.named_modules():
        # RoBERTa's positions start behind the padding token's, so it takes fewer than its config says
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    if longest > limit:
        raise RecipeError(
            f"a row has {longest} tokens, but the model takes {limit}", fix=f"set data.max_length: {limit}"
        )


def show(recipe: Recipe, plan: Plan, rows: PreparedRows, tokenizer: Any, console: Console) -> None:
    """A few lines and one training row, with learnt tokens standing out."""
    counts, held = rows.train_report, rows.validation_report
    cut = f", {counts.truncated} cut at {rows.max_length}" if counts.truncated else ""
    lines = [
        f"{plan.trainable:,} of {plan.total:,} parameters train ({share(plan.trainable, plan.total)})",
        f"{counts.rows:,} rows from {rows.train_source}; longest {counts.longest} tokens{cut}",
        f"validation: {held.rows:,} rows from {rows.validation_source}" if held else "no validation rows",
        f"{plan.steps:,} optimizer steps of {recipe.train.batch_size} rows",
    ]
    if rows.dropped:
        lines.insert(2, f"{rows.dropped:,} rows left out: test sets ask them, too")
    for line in lines:
        console.print(shown(line), highlight=False, soft_wrap=True)
    if counts.truncated:
        console.print("cut rows never show the model their end: raise data.max_length", style="yellow")
    warmup = recipe.optim.warmup_steps
    if warmup is not None and warmup > plan.steps:
        console.print(
            f"the learning rate will not reach its peak: optim.warmup_steps={warmup} of {plan.steps} steps",
            style="yellow",
        )
    if rows.data.kind == "generation":
        learnt = 100 * counts.targets / counts.tokens
        text = preview(rows.data.train[0], tokenizer)
        text.truncate(PREVIEW_CHARACTERS, overflow="ellipsis")
        console.print(Panel(text, title="first row", subtitle=f"{learnt:.0f} % of all tokens are learnt"))


def _k(recipe: Recipe, plan: Plan, skeleton: nn.Module, targets: Sequence[str]) -> int | Mapping[str, int]:
    """Connections kept per neuron; where that is not known yet, their mean, below which it cannot be."""
    if plan.stored_k is not None:
        return plan.stored_k
    if recipe.train.method not in BY_SELECTION:
        return recipe.select.k
    rows = sum(layer_shape(skeleton.get_submodule(name))[0] for name in targets)
    return max(1, round(plan.trainable / rows))


def largest_step(recipe: Recipe, rows: PreparedRows) -> tuple[int, int]:
    """(rows, tokens of each) of the forward pass that takes the most memory."""
    counts = rows.train_report
    return min(recipe.train.micro_batch_size or recipe.train.batch_size, counts.rows), counts.longest


def predicted_memory(
    recipe: Recipe, plan: Plan, rows: PreparedRows, skeleton: nn.Module, targets: Sequence[str], device: str
) -> memory.Breakdown | None:
    """Of the largest step, without reading a weight; None where it is not predicted."""
    if recipe.train.method in ADAPTERS:  # PEFT's set-up looks at values, which a prediction does not have
        return None
    counts = rows.train_report
    micro, longest = largest_step(recipe, rows)
    return memory.predict(
        skeleton,
        plan.stored_k or targets,
        build(recipe.train.method),
        _k(recipe, plan, skeleton, targets),
        batch=micro,
        sequence=longest,
        dtype=hub.TORCH_DTYPES[recipe.model.dtype],
        learnt=round(micro * longest * counts.targets / counts.tokens),
        gradient_checkpointing=recipe.train.gradient_checkpointing,
        device=device.partition(":")[0],
        padded=True,
    )


def show_dry_run(
    recipe: Recipe, plan: Plan, rows: PreparedRows, skeleton: nn.Module, targets: Sequence[str], device: str
) -> memory.Breakdown | None:
    """The resolved recipe and the predicted memory, on standard output; no weight is read.

    Returns None where the memory is not predicted.
    """
    console = Console()
    console.print(printable(to_yaml(recipe), keep="\n"), highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{plan.trainable:,} of {plan.total:,} parameters train; {plan.steps:,} steps", highlight=False
    )
    predicted = predicted_memory(recipe, plan, rows, skeleton, targets, device)
    if predicted is None:
        console.print(f"no prediction of memory for {recipe.train.method}")
        return None
    micro, longest = largest_step(recipe, rows)
    unknown = plan.stored_k is None and recipe.train.method in BY_SELECTION
    kind = "at least" if unknown else "an estimate"
    console.print(f"Predicted memory: {micro} x {longest} tokens, {kind}", highlight=False)
    if unknown:
        console.print(
            "rows are stored as long as the longest of their layer, known after `neuroada select`",
            highlight=False,
            soft_wrap=True,
        )
    table = Table()
    table.add_column("what")
    table.add_column("GB", justify="right")
    for what, nbytes in (
        ("weights", predicted.weights),
        (f"what {recipe.train.method} adds", predicted.state),
        ("activations", predicted.activations),
        ("peak", predicted.peak),
    ):
        table.add_row(what, f"{nbytes / 1e9:.3f}")
    console.print(table)
    return predicted
