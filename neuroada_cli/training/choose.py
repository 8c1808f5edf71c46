"""The selection that a run trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neuroada_cli import hub
from neuroada_cli.data.batch import Batch, align_padding
from neuroada_cli.loop.loop import Schedule, TrainData
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.choice import spread_of
from neuroada_cli.selection.file import Selection
from neuroada_cli.selection.from_files import LayerChoice
from neuroada_cli.selection.from_rows import select_by_data
from neuroada_cli.tasks.task import Task
from neuroada_cli.training.settings import loop_settings


def select_for(
    recipe: Recipe,
    task: Task,
    folder: Path,
    targets: Sequence[str],
    data: TrainData,
    tokenizer: Any,
    device: str,
    on_layer: Callable[[LayerChoice], None] | None = None,
) -> Selection:
    """`select_by_data` on the recipe's model and on the first micro-batches that its training would see.

    Without `select.calibration_batches` these are the first epoch's: every training row once.
    """
    settings = recipe.model
    model = hub.load_model(
        folder, task.model_task, settings.dtype, device, task.num_labels, settings.attention,
        seed=recipe.seed, trust_remote_code=settings.trust_remote_code, quantization=settings.quantization,
    ).model  # fmt: skip
    if data.kind != "generation":
        data = dataclasses.replace(data, pad_id=align_padding(model, tokenizer))
    section = recipe.select
    batches = first_batches(Schedule(data, loop_settings(recipe)), section.calibration_batches)
    return select_by_data(
        folder, model, targets, section.k, section.criterion, batches, data.kind, on_layer,
        spread=spread_of(section), seed=recipe.seed,
        gradient_checkpointing=recipe.train.gradient_checkpointing,
    )  # fmt: skip


def first_batches(schedule: Schedule, wanted: int | None) -> list[Batch]:
    """The first `wanted` micro-batches of a run (fewer of a shorter one); None: one pass over its rows,
    however long the run is.
    """
    batches: list[Batch] = []
    for step in range(schedule.per_epoch if wanted is None else schedule.total):
        if wanted is not None and len(batches) >= wanted:
            break
        batches += schedule.micro_batches(step)
    return batches[:wanted]
