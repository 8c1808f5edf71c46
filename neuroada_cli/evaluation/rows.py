"""Which rows score a task."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from neuroada_cli.data.batch import Example
from neuroada_cli.data.formats import row_bytes
from neuroada_cli.data.reading import Row
from neuroada_cli.data.sources import Rows, field_for, load_rows, require_source, take
from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.evaluation.asked import prompts_sha256
from neuroada_cli.hub.reader import Reader
from neuroada_cli.recipe.schema import DataSection, Recipe
from neuroada_cli.tasks import image_text, leakage
from neuroada_cli.tasks.chat_template import use_template
from neuroada_cli.tasks.glue import half_of_validation
from neuroada_cli.tasks.instruct import habits_of, shaped
from neuroada_cli.tasks.registry import get_task, recipe_task, scored_tasks
from neuroada_cli.tasks.task import Protocol, Task, examples_of, under
from neuroada_cli.tasks.training_set import (
    TrainingSet,
    columns_of,
    held_out_of,
    training_set,
    validation_set,
)

# GLUE's test rows: where training was validated by the protocol's rule, and where it may not have been
UNUSED, HALF = "the validation rows that chose no checkpoint", "half of the validation rows"


@dataclass(frozen=True)
class TaskRows:
    """A task with the rows that score it.

    part    says in words which rows of the published ones they are
    leaked  numbers of those that ask what a row of training_set asks; both None where that set is not known
    chose   how many of them are validation rows of the training, too: they may have chosen what is scored
    """

    task: Task
    rows: Rows
    examples: Sequence[Example]
    part: str
    leaked: frozenset[int] | None = None
    training_set: str | None = None
    chose: int = 0

    @cached_property
    def prompts_sha256(self) -> str:
        """Of what is asked and what is right, in the form that the model and the scorer get it."""
        return prompts_sha256(self.examples, self.task.labels)


@dataclass(frozen=True)
class Learnt:
    """What a model was trained on: the set's name for readers, and its rows' normalised questions.

    validated    hashes of the rows that it was validated on
    why_unknown  what is wrong where these are not known
    """

    source: str
    questions: Collection[str]
    validated: Collection[bytes] = frozenset()
    why_unknown: str | None = None


def learnt_by(
    recipe: Recipe, data_dir: str | None, allow: Callable[[str | None], None] = lambda source: None
) -> Learnt:
    """What training under a recipe learns.

    data_dir  searched before the recipe's own, which may be another machine's
    allow     raises DataError for a validation set that must not be fetched
    Raises DataError when the training set is not here, RecipeError when there is none.
    """
    section = recipe.data.model_copy(update={"data_dir": data_dir or recipe.data.data_dir})
    scored = scored_tasks(recipe.eval.tasks, recipe.data.task)
    task = recipe_task(section)
    found = training_set(section, task, recipe.seed, scored)
    rows = found.rows.subset(found.learnt)
    sets = [rows, *(each.rows.subset(each.learnt) for each in found.also)]
    asked = frozenset().union(*(leakage.questions(each, columns_of(section, each)) for each in sets))
    label = " + ".join(each.label for each in sets)
    try:
        allow(section.validation)
        return Learnt(label, asked, _hashes(_validated(section, task, found, recipe.seed)))
    except DataError as error:
        return Learnt(label, asked, why_unknown=str(error))


def _validated(section: DataSection, task: Task, found: TrainingSet, seed: int) -> list[Row]:
    """The rows that training is validated on."""
    if found.held_out:
        rows, places = found.rows, found.held_out
    elif (beside := validation_set(section, task)) is not None:
        rows, places = beside
    else:
        return []
    return [rows.rows[places[at]] for at in take(places, section.validation_limit, seed)]


def _hashes(rows: Iterable[Row]) -> frozenset[bytes]:
    return frozenset(hashlib.sha256(row_bytes(row)).digest() for row in rows)


def prepare(
    task: Task,
    rules: Protocol,
    data: DataSection | None,
    data_dir: str | None,
    limit: int | None,
    reader: Callable[[], Reader],
    learnt: Learnt | None = None,
) -> TaskRows:
    """Load the rows and make examples of them.

    data       what training used: tells the held-out rows of data of one's own
    limit      only the first so many rows
    reader     called for rows that need its chat template: in formats of one's own, or with pictures
    learnt     what the model was trained on, if that is known
    Raises DataError and RecipeError, with places and counts.
    """
    ruled = under(task, rules)
    rows, part = _rows_of(task, data, data_dir)
    if limit is not None and limit < len(rows):
        rows, part = rows.subset(range(limit)), f"the first {limit} of {part}"
    task = ruled
    if task.name == "instruct":
        found = reader().tokenizer
        use_template(found, data)
        task = shaped(task, rows, habits_of(data, rules), found)
    elif task.family == "image-text":
        found = reader().tokenizer
        use_template(found, data)
        task = image_text.shaped(task, found, habits_of(data, rules))
    examples = examples_of(task, rows.rows, rules.name, rows.source, rows.lines, rows.numbers)
    if learnt is None:
        return TaskRows(task, rows, examples, part)
    own = data if data is not None and "test" not in task.sets else None
    leaked = leakage.leaked(rows, learnt.questions, None if own is None else columns_of(own, rows))
    numbers = frozenset(examples[place].row for place in leaked)
    chose = 0
    if "test" in task.sets:  # else it is the validation rows that are scored, as is said
        chose = sum(not _hashes([row]).isdisjoint(learnt.validated) for row in rows.rows)
    if chose or learnt.why_unknown is not None:
        part = part.replace(UNUSED, HALF)
    if chose:
        part += f", {chose:,} of which training was validated on"
    return TaskRows(task, rows, examples, part, numbers, learnt.source, chose)


def _rows_of(task: Task, data: DataSection | None, data_dir: str | None) -> tuple[Rows, str]:
    source = task.sets.get("test")
    if source is not None:
        rows = load_rows(source, "test", data_dir)
        if task.family == "glue":
            kept = half_of_validation(rows.rows, "report")
            return rows.subset(kept), f"{UNUSED}, of {_part(rows)}" if rows.partial else UNUSED
        return rows, _part(rows)
    if data is not None and get_task(data.task).name == task.name:
        if data.validation:
            rows = load_rows(data.validation, "validation", data_dir, field_for(data.validation, data.field))
            return rows, _part(rows)
        if data.validation_rows:
            rows = load_rows(require_source(data.train, "data.train"), "train", data_dir, data.field)
            first = max(0, len(rows) - held_out_of(data, len(rows)))
            return rows.subset(range(first, len(rows))), "the rows that were held out of training"
    raise RecipeError(
        f"{task.name} has no test set of its own", fix="set data.validation or data.validation_rows"
    )


def _part(rows: Rows) -> str:
    return "a part of the published rows" if rows.partial else "all rows"
