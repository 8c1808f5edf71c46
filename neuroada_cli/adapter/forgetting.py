"""What tuning costs elsewhere: the loss on general text, of the base and of what was tuned from it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from rich.console import Console

from neuroada_cli import files
from neuroada_cli.adapter.beside import Loading, Side, sides
from neuroada_cli.adapter.load import Target
from neuroada_cli.data.batch import Example
from neuroada_cli.data.sources import Rows, load_rows
from neuroada_cli.errors import DataError
from neuroada_cli.evaluation import display
from neuroada_cli.evaluation.records import Records
from neuroada_cli.evaluation.results import Prediction, TaskResult
from neuroada_cli.evaluation.run import OnRows, length_for, likelihoods
from neuroada_cli.foreign_text import shown
from neuroada_cli.methods import METHODS
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.show.notes import say

NAME = "forgetting"  # of the result, beside those of tasks


def general_text(source: str, data_dir: str | None, limit: int | None) -> tuple[Rows, list[Example]]:
    """Rows with `text`, which are learnt as a whole where they are trained on.

    source  as `data.train` names one; limit: only the first so many rows
    Raises DataError for rows that have no text.
    """
    rows = load_rows(source, "test", data_dir)
    rows = rows.subset(range(min(limit or len(rows), len(rows))))
    texts = [row.get("text") for row in rows.rows]
    bad = [number for number, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(rows)} rows have no text (the first is row {bad[0]})",
            rows.source,
            "general text is rows with `text`, or a .txt file",
        )
    return rows, [Example("", row["text"], row["text"], number) for number, row in enumerate(rows.rows)]


def measure(
    target: Target,
    trained: Recipe | None,
    how: Loading,
    source: str,
    max_length: int,
    records: Records,
    console: Console,
    data_dir: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    ranks: Ranks = ALONE,
) -> tuple[list[Prediction], TaskResult]:
    """The forgetting of `target` on the text in `source`, shown, and kept in the folder of its scores.

    Raises DataError as `general_text`, ModelError as `sides`, OutputError where it was measured already.
    """
    if not overwrite:
        ranks.first_does(lambda: records.refuse_finished([NAME]))
    rows, examples = ranks.all_do(lambda: general_text(source, data_dir, limit))
    with display.bar(console, NAME, 2 * len(rows)) as bar:
        found, result, identity = forgetting(
            target, trained, how, examples, max_length, lambda batch, _: bar.advance(batch), ranks
        )
    about = identity | {
        "data": {"source": rows.label, "rows": len(rows), "sha256": rows.sha256},
        "device": how.device,
        "dtype": how.dtype,
    }

    def keep() -> None:
        with files.Lock(records.folder):
            records.finish(NAME, found, result, about)

    ranks.first_does(keep)
    display.tell_cut(result, about["max_length"], max_length, console)
    in_prompts = trained is not None and METHODS[trained.train.method].in_prompts
    display.tell_forgetting(result, rows.label, console, in_prompts)
    say(console, f"rows and results: {shown(records.folder)}")
    return found, result


def forgetting(
    target: Target,
    trained: Recipe | None,
    how: Loading,
    examples: list[Example],
    max_length: int,
    on_rows: OnRows | None = None,
    ranks: Ranks = ALONE,
) -> tuple[list[Prediction], TaskResult, dict[str, Any]]:
    """(every row, the loss per token before and after with their difference, what the model is and how many
    tokens of a row were looked at).

    A row is cut at max_length tokens, or where the model takes no more. Raises ModelError as `sides` does.
    """
    loaded, models = sides(target, trained, how, both=True)
    started = time.perf_counter()

    def losses(side: Side) -> list[Prediction]:
        with side.on():
            return likelihoods(side.model, loaded.reader, examples, max_length, on_rows, ranks)

    before, after = losses(models[0]), losses(models[1])
    for side in models:
        side.loaded.refuse_written_to()
    found = [replace(now, before=then.loss) for then, now in zip(before, after, strict=True)]
    tokens = max(1, sum(row.targets or 0 for row in found))
    was, now = (sum(row.loss or 0.0 for row in rows) / tokens for rows in (before, after))
    result = TaskResult(
        task=NAME,
        n=len(found),
        score=now - was,
        metric=NAME,
        unparsed=0,
        strict=None,
        majority=None,
        seconds=round(time.perf_counter() - started, 3),
        tokens=0,
        metrics={NAME: now - was, "loss_before": was, "loss_after": now},
        cut=sum(bool(row.cut) for row in found),
    )
    return found, result, loaded.identity | {"max_length": length_for(models[0].model, max_length)}
