"""What a run is going to do, told before it does it: size, steps, data, a row with its loss mask."""

from __future__ import annotations

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from neuroada_cli.data.batch import IGNORED
from neuroada_cli.data.encoding import preview
from neuroada_cli.errors import RecipeError
from neuroada_cli.foreign_text import printable, shown
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.show.notes import say
from neuroada_cli.show.numbers import counted
from neuroada_cli.training.parallel import without_a_row
from neuroada_cli.training.preflight import Checked
from neuroada_cli.training.remarks import remarks

PREVIEW_CHARACTERS = 1200


def show(
    checked: Checked, console: Console, ranks: Ranks = ALONE, why: str = "", rows_follow: bool = False
) -> None:
    """A few lines and, unless `show_rows` follows, one training row, with learnt tokens standing out."""
    recipe, plan, rows = checked.recipe, checked.plan, checked.rows
    counts, held = rows.train_report, rows.validation_report
    cut = f", {counts.truncated} cut at {rows.max_length}" if counts.truncated else ""
    size = f"longest {counts.longest} tokens{cut}" if counts.tokens else "a picture each"
    lines = [
        plan.trains(),
        f"{counted(counts.rows, 'row')} from {rows.train_source}; {size}",
        f"validation: {counted(held.rows, 'row')} from {rows.validation_source}"
        if held
        else "no validation rows",
        plan.walks(recipe.train.batch_size, counts.rows, "optimizer step"),
    ]
    if not ranks.alone:
        holds = "its share of every layer's neurons" if ranks.sharded else "the whole model"
        lines.append(f"{ranks.size} processes, each with {holds} and a part of every step's rows ({why})")
    if rows.dropped:
        lines.insert(2, f"{counted(rows.dropped, 'row')} left out: test sets ask them, too")
    for line in lines:
        say(console, shown(line))
    idle = without_a_row(recipe, ranks.size)
    more = [] if idle is None else [f"{idle}; the others hold their share and wait"]
    for line in (*more, *remarks(checked)):
        say(console, shown(line), style="yellow")
    warmup = recipe.optim.warmup_steps
    if warmup is not None and warmup > plan.steps:
        console.print(
            f"the learning rate will not reach its peak: optim.warmup_steps={warmup} of {plan.steps} steps",
            style="yellow",
        )
    if rows.data.kind == "generation":
        learnt = f"{100 * counts.targets / counts.tokens:.0f} % of all tokens are learnt"
        if rows_follow:
            say(console, learnt)
            return
        text = preview(rows.data.train[0], checked.reader.tokenizer, marks=not console.is_terminal)
        text.truncate(PREVIEW_CHARACTERS, overflow="ellipsis")
        console.print(Panel(text, title="first row", subtitle=learnt))


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
