"""The tasks and protocols by name. A new one is an entry in the file of its family, or a file and a line."""

from __future__ import annotations

from collections.abc import Sequence

from neuroada_cli.errors import RecipeError, nearest
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks import (
    arithmetic,
    classes,
    commonsense,
    due_dates,
    glue,
    gsm8k,
    image_text,
    instruct,
    metamath,
    pictures,
)
from neuroada_cli.tasks.task import PROTOCOLS, Protocol, Task

TASKS: dict[str, Task] = {
    task.name: task
    for family in (
        commonsense,
        arithmetic,
        gsm8k,
        metamath,
        glue,
        instruct,
        due_dates,
        pictures,
        image_text,
        classes,
    )
    for task in family.TASKS
}
GROUPS: dict[str, tuple[str, ...]] = {
    "commonsense-all": commonsense.ALL,
    "math-all": arithmetic.ALL,
    "math": arithmetic.ALL,  # the training mixture has no test set of its own
    "glue-all": glue.ALL,
}
ALIASES = {
    "siqa": "social_i_qa", "obqa": "openbookqa", "arc_e": "ARC-Easy", "arc-e": "ARC-Easy",
    "arc_c": "ARC-Challenge", "arc-c": "ARC-Challenge", "hellas": "hellaswag", "winog": "winogrande",
    "sst-2": "sst2", "sts-b": "stsb",
}  # fmt: skip


def get_task(name: str) -> Task:
    """The task of that name, in any case or by a common alias. Raises RecipeError with a did-you-mean."""
    known = {key.lower(): task for key, task in TASKS.items()}
    known |= {alias: TASKS[key] for alias, key in ALIASES.items()}
    if name.lower() in known:
        return known[name.lower()]
    if name.lower() in GROUPS:
        members = ", ".join(GROUPS[name.lower()])
        raise RecipeError(f"{name} is a group of tasks, and this takes one task", fix=f"choose {members}")
    hint = nearest(name.lower(), [*known, *GROUPS], f"known: {', '.join(TASKS)}")
    raise RecipeError(f"{name} is not a task", fix=hint)


def recipe_task(section: DataSection) -> Task:
    """The task of a recipe, with what the recipe says of it, or its rows. Raises RecipeError, DataError."""
    return said_of(get_task(section.task), section)


def said_of(task: Task, section: DataSection | None) -> Task:
    """`task`; where its classes are one's own, with those of a recipe. Raises RecipeError, DataError."""
    if task.name == classes.OWN:
        if section is None:
            raise RecipeError(f"the classes of {task.name} are not known", fix="add --recipe RECIPE")
        return classes.with_labels(task, section)
    return labelled(task, section.labels if section is not None else ())


def labelled(task: Task, labels: Sequence[str]) -> Task:
    """`task`; where it is one of one's own pictures, with these labels. Raises RecipeError without any."""
    return pictures.with_labels(task, labels) if task.name == pictures.OWN else task


def expand(names: Sequence[str]) -> list[Task]:
    """Tasks and groups by name, each task once, in the given order. Raises RecipeError."""
    tasks: dict[str, Task] = {}
    for name in names:
        for member in GROUPS.get(name.lower(), (name,)):
            task = get_task(member)
            tasks[task.name] = task
    return list(tasks.values())


def scored_tasks(named: Sequence[str], trained: str) -> list[Task]:
    """What `eval` scores under a recipe: the tasks it names, else those of its training task."""
    return expand(named or [trained])


def get_protocol(name: str) -> Protocol:
    """Raises RecipeError for a name that is none."""
    if name not in PROTOCOLS:
        raise RecipeError(f"{name} is not a protocol", fix=f"choose {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
