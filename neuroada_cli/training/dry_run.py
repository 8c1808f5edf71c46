"""What a run is going to do, told before it does it: size, steps, data, a row with its loss mask, memory."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from neuroada_cli import memory
from neuroada_cli.data.batch import IGNORED
from neuroada_cli.data.encoding import preview
from neuroada_cli.errors import RecipeError
from neuroada_cli.foreign_text import printable, shown
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.show.numbers import share
from neuroada_cli.training.parallel import of_processes, why_not_sharded
from neuroada_cli.training.plan import largest_step, predicted_memory
from neuroada_cli.training.preflight import Checked
from neuroada_cli.training.remarks import remarks

PREVIEW_CHARACTERS = 1200
Ways = Mapping[str, memory.Breakdown | memory.ProcessBytes]


def show(checked: Checked, console: Console, ranks: Ranks = ALONE, why: str = "") -> None:
    """A few lines and one training row, with learnt tokens standing out."""
    recipe, plan, rows = checked.recipe, checked.plan, checked.rows
    counts, held = rows.train_report, rows.validation_report
    cut = f", {counts.truncated} cut at {rows.max_length}" if counts.truncated else ""
    size = f"longest {counts.longest} tokens{cut}" if counts.tokens else "a picture each"
    lines = [
        f"{plan.trainable:,} of {plan.total:,} parameters train ({share(plan.trainable, plan.total)})",
        f"{counts.rows:,} rows from {rows.train_source}; {size}",
        f"validation: {held.rows:,} rows from {rows.validation_source}" if held else "no validation rows",
        f"{plan.steps:,} optimizer steps of {recipe.train.batch_size} rows",
    ]
    if not ranks.alone:
        holds = "its share of every layer's neurons" if ranks.sharded else "the whole model"
        lines.append(f"{ranks.size} processes, each with {holds} and a part of every step's rows ({why})")
    if rows.dropped:
        lines.insert(2, f"{rows.dropped:,} rows left out: test sets ask them, too")
    for line in lines:
        console.print(shown(line), highlight=False, soft_wrap=True)
    for line in remarks(checked):
        console.print(shown(line), style="yellow", highlight=False, soft_wrap=True)
    warmup = recipe.optim.warmup_steps
    if warmup is not None and warmup > plan.steps:
        console.print(
            f"the learning rate will not reach its peak: optim.warmup_steps={warmup} of {plan.steps} steps",
            style="yellow",
        )
    if rows.data.kind == "generation":
        learnt = 100 * counts.targets / counts.tokens
        text = preview(rows.data.train[0], checked.reader.tokenizer)
        text.truncate(PREVIEW_CHARACTERS, overflow="ellipsis")
        console.print(Panel(text, title="first row", subtitle=f"{learnt:.0f} % of all tokens are learnt"))


def show_rows(checked: Checked, count: int, console: Console) -> None:
    """The first rows as they will be learnt, whole: what is learnt stands out, and special tokens are named.

    Raises RecipeError for a task whose rows have a class or a score to learn, and no text.
    """
    data, tokenizer = checked.rows.data, checked.reader.tokenizer
    if data.kind != "generation":
        raise RecipeError(
            f"{checked.task.name} learns one label a row, and no text", "--preview", "leave it out"
        )
    for row in data.train[:count]:
        tokens = row.input_ids + (row.decoder or [])[1:]
        labels = row.labels if isinstance(row.labels, list) else []
        learnt = sum(label != IGNORED for label in labels)
        cut = ", cut" if len(row) == checked.rows.max_length else ""
        special = [token for token in dict.fromkeys(tokens) if token in tokenizer.all_special_ids]
        named = ", ".join(f"{tokenizer.convert_ids_to_tokens(token)} = {token}" for token in special)
        text = preview(row, tokenizer, marks=not console.is_terminal)
        subtitle = f"{learnt} of {len(tokens)} tokens are learnt{cut}; special: {named or 'none'}"
        console.print(Panel(text, title=f"row {row.row}", subtitle=Text(printable(subtitle))))
        start = tokenizer.bos_token_id
        if start is not None and tokens[:2] == [start, start]:
            console.print(f"row {row.row} begins with two start tokens", style="yellow")


def dry_run(checked: Checked, processes: int = 1) -> memory.Breakdown | memory.ProcessBytes | None:
    """The resolved recipe and the predicted memory, on standard output; no weight is read.

    processes  that are going to train together
    Returns the largest step of one process, by the way to share the work that takes the least; None where it
    is not predicted.
    """
    recipe, plan = checked.recipe, checked.plan
    console = Console()
    console.print(printable(to_yaml(recipe), keep="\n"), highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{plan.trainable:,} of {plan.total:,} parameters train; {plan.steps:,} steps", highlight=False
    )
    if processes == 1:
        found = predicted_memory(recipe, plan, checked.rows, checked.base, checked.device)
        ways: str | Ways = found if isinstance(found, str) else {"GB": found}
    else:
        ways = of_processes(checked, processes)
    if isinstance(ways, str):
        console.print(f"memory is not predicted: {shown(ways)}", highlight=False, soft_wrap=True)
        return None
    _say_of_what(checked, processes, console)
    console.print(_memory_table(ways, recipe.train.method))
    if processes > 1 and (why := why_not_sharded(recipe)) is not None:
        console.print(f"train.parallel: shard {why}", highlight=False, soft_wrap=True)
    return min(ways.values(), key=lambda way: way.peak)


def _say_of_what(checked: Checked, processes: int, console: Console) -> None:
    micro, longest = largest_step(checked.recipe, checked.rows, processes)
    unknown = checked.plan.stored_k is None and checked.plan.facts.chosen
    sees = checked.task.pictures and longest > 0
    kind = "at least" if unknown or sees else "an estimate"
    each = "" if processes == 1 else f" in each of {processes} processes"
    size = f"{micro} x {longest} tokens" if longest else f"{micro} pictures"
    console.print(f"Predicted memory{each}: {size}, {kind}", highlight=False)
    if unknown:
        console.print(
            "rows are stored as long as the longest of their layer, known after `neuroada select`",
            highlight=False,
            soft_wrap=True,
        )
    if sees:
        console.print("the pass over the pictures themselves comes on top", highlight=False)


def _memory_table(ways: Ways, method: str) -> Table:
    table = Table()
    table.add_column("what" if "GB" in ways else "GB, by train.parallel")
    parts = {"weights": "weights", "state": f"what {method} adds", "activations": "activations"}
    if "shard" in ways:
        parts["gathered"] = "layers put together"
    parts["peak"] = "peak"
    if "GB" not in ways:
        parts["sent"] = "sent per step"
    for way in ways:
        table.add_column(way, justify="right")
    for part, what in parts.items():
        table.add_row(what, *(f"{getattr(way, part) / 1e9:.3f}" for way in ways.values()))
    return table
