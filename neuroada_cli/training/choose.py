"""The selection that a run trains on: made here for `select` and for `train` alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from neuroada_cli import hub
from neuroada_cli.data.batch import Batch, unpadded
from neuroada_cli.data.inputs import aligned_padding
from neuroada_cli.hub.embeddings import refuse_unknown
from neuroada_cli.loop.loop import Schedule, TrainData
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.choice import Choice
from neuroada_cli.selection.criteria import DATA_CRITERIA
from neuroada_cli.selection.file import Selection
from neuroada_cli.selection.from_files import LayerChoice, select_from_files
from neuroada_cli.selection.from_rows import select_from_rows
from neuroada_cli.selection.in_parts import select_in_parts, told
from neuroada_cli.selection.same import ROWS
from neuroada_cli.tasks.chat_template import use_template
from neuroada_cli.tasks.registry import recipe_task, scored_tasks
from neuroada_cli.training.rows import hash_of, prepare
from neuroada_cli.training.settings import dtype_of, loop_settings, with_own_dtype

T = TypeVar("T")


def select(
    recipe: Recipe,
    base: hub.Base,
    choice: Choice,
    on_layer: Callable[[LayerChoice], None] | None = None,
    data: TrainData | None = None,
    reader: hub.Reader | None = None,
    device: str | None = None,
    ranks: Ranks = ALONE,
) -> Selection:
    """What the recipe chooses, by its own criterion or by that of `choice`, and its rule; the model is only
    loaded, and training rows only read, where the criterion asks for it.

    data, reader, device  where they are there already
    ranks  choose together and end with the same; by training rows, rank 0 chooses for all
    """
    recipe = with_own_dtype(recipe, base)
    if choice.criterion not in DATA_CRITERIA:
        dtype = dtype_of(recipe)
        if not ranks.alone:
            found = select_in_parts(base, choice, recipe.model.quantization, dtype, ranks)
        else:
            found = select_from_files(base, choice, on_layer, recipe.model.quantization, dtype)
        return dataclasses.replace(found, rule=rule_of(recipe, choice))
    if not ranks.alone:
        alone = ranks.first_does(lambda: select(recipe, base, choice, on_layer, data, reader, device))
        return told(alone, ranks)
    task, trusted = recipe_task(recipe.data), recipe.model.trust_remote_code
    reader = reader or hub.load_reader(base.folder, base.task, trusted, task.pictures)
    use_template(reader.tokenizer, recipe.data)
    if data is None:
        scored = scored_tasks(recipe.eval.tasks, recipe.data.task)  # training leaves their rows out, too
        data = prepare(recipe.data, task, reader, recipe.seed, scored, base.positions).data
        refuse_unknown(base.graph, ((row.row, row.input_ids) for row in data.train), str(base.folder))
    rule = rule_of(recipe, choice, hash_of(data.train))
    model = load(recipe, base, device or hub.choose_device(recipe.device)).model
    if data.kind != "generation":
        data = dataclasses.replace(data, pad_id=aligned_padding(model, reader))
    batches = calibration(recipe, data, choice.criterion)
    recompute = recipe.train.gradient_checkpointing
    fingerprint = base.fingerprint_as_read(everything=True)  # loading has just read it all
    found = select_from_rows(
        fingerprint, model, choice, batches, data.kind, on_layer, gradient_checkpointing=recompute
    )
    return dataclasses.replace(found, rule=rule)


def rule_of(recipe: Recipe, choice: Choice, rows: str | None = None) -> dict[str, Any]:
    """What decides which connections are chosen, beside what the label and the index say: stored with them,
    so that they are not taken for those of a recipe that would choose others.

    rows  `hash_of` the training rows, where the criterion looks at them
    """
    rule: dict[str, Any] = {"model.quantization": recipe.model.quantization}
    looks = choice.criterion in DATA_CRITERIA
    if looks or choice.criterion == "random" or choice.spread.neurons < 1:
        rule["seed"] = choice.seed
    if choice.criterion == "lift":
        rule["select.lift_rank"] = choice.rank
    if looks:
        rule[ROWS] = rows
        rule["select.calibration_batches"] = recipe.select.calibration_batches
    if looks and recipe.select.calibration_batches is not None:
        rule["rows of a batch"] = recipe.train.micro_batch_size or recipe.train.batch_size
    return rule


def load(recipe: Recipe, base: hub.Base, device: str) -> hub.LoadedModel:
    """The recipe's model with its weights."""
    settings, task = recipe.model, recipe_task(recipe.data)
    return hub.load_model(
        base.folder, base.task, dtype_of(recipe), device, task.num_labels, settings.attention,
        seed=recipe.seed, trust_remote_code=settings.trust_remote_code, quantization=settings.quantization,
    )  # fmt: skip


def calibration(recipe: Recipe, data: TrainData, criterion: str) -> list[Batch]:
    """What a criterion looks at: the first micro-batches of training, as training has them. `activation`
    counts inputs, whatever is learnt at them, so its batches hold every row's tokens once and nothing else:
    no padding, which some layers get in a layout that does not tell it from tokens, and no shared prefix.
    """
    schedule, wanted = Schedule(data, loop_settings(recipe)), recipe.select.calibration_batches
    if criterion != "activation":
        return first_batches(schedule.micro_batches, schedule, wanted)
    rows = [row for batch in first_batches(schedule.micro_rows, schedule, wanted) for row in batch]
    most = recipe.train.micro_batch_size or recipe.train.batch_size
    return list(unpadded(rows, data.pad_id, data.features, most))


def first_batches(made: Callable[[int], list[T]], schedule: Schedule, wanted: int | None) -> list[T]:
    """The first `wanted` micro-batches of a run (fewer of a shorter one); None: one pass over its rows,
    however long the run is.

    made  step -> its micro-batches, or their rows
    """
    batches: list[T] = []
    for step in range(schedule.per_epoch if wanted is None else schedule.total):
        if wanted is not None and len(batches) >= wanted:
            break
        batches += made(step)
    return batches[:wanted]
