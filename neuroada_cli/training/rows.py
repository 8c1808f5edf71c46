"""What a run trains and validates on: from the recipe's data section to encoded rows."""

from __future__ import annotations

import datetime
import hashlib
import json
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from neuroada_cli.data import sources
from neuroada_cli.data.batch import Encoded, Example
from neuroada_cli.data.encoding import EncodeReport
from neuroada_cli.data.inputs import encode_for, features_for, padding_for
from neuroada_cli.data.lazy import Lazy, Made, chosen, joined
from neuroada_cli.data.sources import Rows
from neuroada_cli.hub.reader import Reader
from neuroada_cli.loop.loop import TrainData
from neuroada_cli.loop.validate import Metric
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.show.progress import counting
from neuroada_cli.tasks import image_text, instruct, metrics
from neuroada_cli.tasks.loss_mask import learns_prompt
from neuroada_cli.tasks.registry import get_protocol
from neuroada_cli.tasks.task import Task, examples_of, under
from neuroada_cli.tasks.training_set import TrainingSet, training_set, validation_set


@dataclass(frozen=True)
class PreparedRows:
    """data, ready for the loop; train_report and validation_report count it; hashes identify its sources and
    what tokenizer and template made of them.

    max_length  tokens at which rows were cut
    dropped  training rows left out because test sets ask them, too (data.drop_leaked)
    published  they are encoded by the papers' rule
    notes  what is to be said of the rows' columns; day: what a chat template was told that asks for it
    form   the format of rows of one's own, where all are of one
    """

    data: TrainData
    train_report: EncodeReport
    validation_report: EncodeReport | None
    max_length: int
    train_source: str
    validation_source: str | None
    hashes: dict[str, str]
    dropped: int = 0
    published: bool = False
    notes: tuple[str, ...] = ()
    day: datetime.date | None = None
    form: str | None = None


def prepare(
    section: DataSection,
    task: Task,
    reader: Reader,
    seed: int,
    scored: Collection[Task] = (),
    context: int | None = None,
    console: Console | None = None,
) -> PreparedRows:
    """Load, split, limit and encode.

    Validation rows are, in this order: `data.validation`; the last `data.validation_rows` of the training
    set; the last 300 for GSM8K by itself; the task's own validation set (of GLUE's the part that chooses
    checkpoints); otherwise there are none. `scored` are the tasks whose test sets `data.drop_leaked` means.
    context: tokens that the model takes, where rows may be cut or dropped for it; console: where is shown
    how far encoding is.
    Raises DataError or RecipeError, with counts and places.
    """
    metrics.require(task.metrics[:1] if task.kind != "generation" else ())
    rules = get_protocol(section.protocol)
    task, max_length = under(task, rules), section.max_length or rules.max_length
    if section.too_long != "refuse":
        max_length = min(max_length, context or max_length)
    found = training_set(section, task, seed, scored, console)
    rows, reading = found.rows, _Reading(task, section, instruct.habits_of(section, rules), reader)
    train, validation, validation_rows = _split(section, task, found, seed, reading)

    habits = reading.habits
    on_prompt = learns_prompt(section, task, rules)
    how = (max_length, task.kind, on_prompt, task.published, section.too_long)
    held: Sequence[Encoded] = []
    held_report = None
    with counting("encoding rows", len(train) + len(validation), console) as watch:
        train_encoded, report = encode_for(reader, train, *how, watch=watch)
        if validation:
            held, held_report = encode_for(reader, validation, *how, watch=watch)
    hashes = {"train": rows.sha256, "train tokens": hash_of(train_encoded)}
    if validation_rows is not None:
        hashes |= {"validation": validation_rows.sha256, "validation tokens": hash_of(held)}
    for number, each in enumerate(found.also, start=2):
        hashes[f"train {number}"] = each.rows.sha256
    if section.drop_leaked:  # they depend on the test sets, which may change
        hashes["dropped"] = hashlib.sha256(json.dumps(found.dropped).encode()).hexdigest()
    return PreparedRows(
        TrainData(train_encoded, held, task.kind, padding_for(reader), _metric(task), features_for(reader)),
        report,
        held_report,
        max_length,
        found.source,
        validation_rows.source if validation_rows else None,
        hashes,
        len(found.dropped) + sum(each.dropped for each in found.also),
        task.published,
        (*_said_of(rows, *(each.rows for each in found.also), validation_rows), *habits.notes.lines()),
        habits.day if habits.notes.day else None,
        next(iter(habits.notes.forms)) if len(habits.notes.forms) == 1 else None,
    )


def _said_of(*sets: Rows | None) -> list[str]:
    found: dict[str, None] = {}
    for rows in sets:
        if rows is not None:
            found |= dict.fromkeys(rows.remarks)
            if rows.partial:
                found[f"{rows.label} is by its name only a part of the split"] = None
    return list(found)


@dataclass(frozen=True)
class _Reading:
    """How rows become examples."""

    task: Task
    section: DataSection
    habits: instruct.Habits
    reader: Reader

    def further(self, rows: Rows) -> Sequence[Example]:
        """Of a source beside the first: its columns may have other names, and then speak for themselves."""
        if not set(self.habits.columns.values()) & rows.rows[0].keys():
            return replace(self, habits=replace(self.habits, columns={})).examples(rows)
        return self.examples(rows)

    def examples(self, rows: Rows) -> Sequence[Example]:
        task = self.task
        if task.name == "instruct":
            task = instruct.shaped(task, rows, self.habits, self.reader.tokenizer)
        elif task.family == "image-text":
            task = image_text.shaped(task, self.reader.tokenizer, self.habits)
        protocol, notes = self.section.protocol, self.habits.notes
        for column in rows.spare:
            notes.used(column)
        return examples_of(task, rows.rows, protocol, rows.source, rows.lines, notes=notes)


def hash_of(rows: Sequence[Encoded]) -> str:
    """Of all that a model is given of the rows and learns of them: sha256."""
    digest = hashlib.sha256()
    for row in rows:
        labels = row.labels if isinstance(row.labels, list) else [row.labels]
        kind = "d" if isinstance(labels[0], float) else "q"
        head = [row.row, len(row), -1 if row.prompt is None else row.prompt]
        tokens = [*row.input_ids, *(row.type_ids or ()), *(row.decoder or ())]
        digest.update(array("q", [*head, *tokens]).tobytes())
        digest.update("".join(row.seen).encode())
        digest.update(array(kind, labels).tobytes())
    return digest.hexdigest()


def _split(
    section: DataSection, task: Task, found: TrainingSet, seed: int, reading: _Reading
) -> tuple[Sequence[Example], Sequence[Example], Rows | None]:
    """(training examples, validation examples, where the latter came from)."""
    examples = reading.examples(found.rows)
    if found.held_out:
        validation = chosen(examples, found.held_out)
        validation_rows: Rows | None = found.rows
    else:
        validation, validation_rows = _own_validation(section, task, reading)
    validation = chosen(validation, sources.take(validation, section.validation_limit, seed))
    train = [chosen(examples, found.learnt)]
    before = len(examples)
    for each in found.also:  # their numbers go on where those of the rows before them end
        further = reading.further(each.rows)
        train.append(_numbered_from(before, chosen(further, each.learnt)))
        before += len(further)
    return joined(train), validation, validation_rows


def _numbered_from(first: int, examples: Sequence[Example]) -> Sequence[Example]:
    def moved(_: int, example: Example) -> Example:
        return replace(example, row=first + example.row)

    if isinstance(examples, Lazy):
        return Made(examples, moved, f"{first} {examples.fingerprint()}")
    return [moved(0, example) for example in examples]


def _own_validation(
    section: DataSection, task: Task, reading: _Reading
) -> tuple[Sequence[Example], Rows | None]:
    found = validation_set(section, task)
    if found is None:
        return [], None
    rows, places = found
    examples = reading.examples(rows)
    return examples if len(places) == len(rows) else chosen(examples, places), rows


def _metric(task: Task) -> Metric | None:
    if task.kind == "generation":
        return None
    return Metric(task.metrics[0], metrics.METRICS[task.metrics[0]])
