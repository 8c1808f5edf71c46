"""`neuroada train`: cheap checks, selection, model, training, and what is left behind.

K = chosen inputs per neuron
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from neuroada_cli import files, hub
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.data.batch import align_padding
from neuroada_cli.delta.index import size
from neuroada_cli.delta.reselection import Choose
from neuroada_cli.errors import RecipeError, ResourceError, UserError
from neuroada_cli.foreign_text import shown
from neuroada_cli.loop.loop import Progress, train
from neuroada_cli.loop.loss import check_packing
from neuroada_cli.machine import environment
from neuroada_cli.machine.allocator import keeping_freed_memory
from neuroada_cli.machine.memory import peak_memory
from neuroada_cli.methods import BY_SELECTION, Method, MethodState, build
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection import from_files
from neuroada_cli.selection.choice import spread_of
from neuroada_cli.selection.criteria import DATA_CRITERIA, choose
from neuroada_cli.selection.file import Selection, check_base, write_selection
from neuroada_cli.tasks.registry import get_protocol
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training import picture, space
from neuroada_cli.training import plan as plans
from neuroada_cli.training.advice import advised
from neuroada_cli.training.checkpoint import RunCheckpoints, check_unchanged, newest_complete
from neuroada_cli.training.choose import select_for
from neuroada_cli.training.live import LiveReport
from neuroada_cli.training.log import MetricsLog, read_metrics
from neuroada_cli.training.preflight import Checked, check
from neuroada_cli.training.settings import loop_settings


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind; after a dry run there are no folders, steps are those to come.

    best        the checkpoint with the best evaluation; None without validation rows
    best_value  its validation loss, or the task's metric
    loss        mean training loss of the last step
    peak_bytes  of memory; of a dry run: predicted
    """

    run_dir: Path
    best: Path | None
    last: Path | None
    steps: int
    seconds: float
    peak_bytes: int
    trainable: int
    total: int
    best_value: float | None
    loss: float | None


def run(
    recipe: Recipe,
    selection: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    recipe_file: Path | None = None,
) -> TrainResult:
    """Train as the recipe says, into its run folder.

    selection  a selection file, instead of the run folder's own or a new one
    resume     go on from the newest complete checkpoint (from the start when there is none yet)
    overwrite  remove a former run in the folder, once everything else is known to be right
    dry_run    check everything and show what would happen; no weight is read, nothing is written
    recipe_file  where the recipe came from: a run that would remove it is refused
    One process trains: a launcher that starts several of them is refused before anything is written.
    Raises UserErrors before the model loads wherever that is possible; Stopped after a signal.
    """
    _refuse_ranks()
    console = Console(stderr=True, quiet=quiet)
    if selection is not None:
        section = recipe.select.model_copy(update={"file": str(selection)})
        recipe = recipe.model_copy(update={"select": section})
    run_dir = recipe.run_path
    run_folder.check(run_dir, resume, overwrite, recipe_file)
    checked = check(recipe, overwrite)
    plans.show(recipe, checked.plan, checked.rows, checked.tokenizer, console)
    if dry_run:
        plan, names = checked.plan, list(checked.targets)
        predicted = plans.show_dry_run(
            checked.recipe, plan, checked.rows, checked.skeleton, names, checked.device
        )
        return TrainResult(
            run_dir,
            None,
            None,
            plan.steps,
            0.0,
            predicted.peak if predicted else 0,
            plan.trainable,
            plan.total,
            None,
            None,
        )
    space.require(checked)
    with files.Lock(run_dir):
        run_folder.check(run_dir, resume, overwrite, recipe_file)
        source = newest_complete(run_dir) if resume else None
        if resume:
            files.clean_stale(run_dir)  # what a killed run left half written; a fresh start clears it anyway
        if source is not None:
            check_unchanged(source, checked.recipe.model_dump(mode="json"), checked.rows.hashes)
        elif resume:
            console.print("no checkpoint yet: training starts at the beginning")
        return _train(checked, source, console)


def _refuse_ranks() -> None:
    """torchrun and its like start one process per GPU, which would all write into one run folder."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    if ranks not in ("", "0", "1"):
        raise ResourceError(
            f"was started as one of {ranks[:16]} processes, but trains in one",
            "WORLD_SIZE",
            "start it without torchrun or accelerate",
        )


def _train(checked: Checked, source: Path | None, console: Console) -> TrainResult:
    recipe, run_dir, started = checked.recipe, checked.recipe.run_path, time.perf_counter()
    with advised(checked, "choosing connections"):
        selection = _selection(checked, source, console)
    with advised(checked, "loading the model"):
        model, method, trainable = _attached(checked, selection)
    data = checked.rows.data
    if recipe.train.packing:
        check_packing(model, data.train)
    if data.kind != "generation":
        data = dataclasses.replace(data, pad_id=align_padding(model, checked.tokenizer))
    if source is None:
        _begin(recipe, run_dir, selection)
    log = MetricsLog(run_dir / run_folder.METRICS)
    checkpoints = RunCheckpoints(
        run_dir,
        adapter=lambda state: _adapter(checked, selection, state, data.pad_id),
        tokenizer=checked.tokenizer,
        recipe_yaml=to_yaml(recipe),
        recipe=recipe.model_dump(mode="json"),
        data=checked.rows.hashes,
        keep=recipe.train.keep,
        log_position=log.settled,
        cut_log=log.cut,
        source=source,
    )
    device = torch.device(checked.device)
    indices = selection.indices if recipe.train.method in BY_SELECTION else {}
    try:
        keeping = keeping_freed_memory() if checked.device == "cpu" else contextlib.nullcontext()
        with advised(checked, "training"), keeping, LiveReport(log, device, console) as report:
            settings = loop_settings(recipe)
            progress = train(model, method, data, settings, checkpoints, report, indices, _choose(recipe))
    except UserError:
        with contextlib.suppress(UserError):  # the picture matters less than what went wrong
            _draw(recipe, run_dir)
        raise
    _draw(recipe, run_dir)
    result = _result(checked, progress, trainable, time.perf_counter() - started, peak_memory(device))
    _show(result, console)
    return result


def _selection(checked: Checked, source: Path | None, console: Console) -> Selection:
    """Stored once and reused ever after: the checkpoint's, the given one, or a new one."""
    if source is not None:
        selection = adapters.read_adapter(source).selection
        check_base(selection.fingerprint, checked.folder)
        return selection
    if checked.given is not None:
        return checked.given
    section = checked.recipe.select
    with console.status("choosing connections"):
        if section.criterion in DATA_CRITERIA:
            return select_for(
                checked.recipe,
                checked.task,
                checked.folder,
                list(checked.targets),
                checked.rows.data,
                checked.tokenizer,
                checked.device,
            )
        return from_files.select_indices(
            checked.folder,
            checked.skeleton,
            checked.targets,
            section.k,
            section.criterion,
            checked.recipe.seed,
            quantization=checked.recipe.model.quantization,
            dtype=hub.TORCH_DTYPES[checked.recipe.model.dtype],
            rank=section.lift_rank,
            spread=spread_of(section),
        )


def _attached(checked: Checked, selection: Selection) -> tuple[nn.Module, Method, int]:
    """(model with the method on it, the method, how many numbers train)."""
    recipe, task = checked.recipe, checked.task
    loaded = hub.load_model(
        checked.folder,
        task.model_task,
        recipe.model.dtype,
        checked.device,
        task.num_labels,
        recipe.model.attention,
        seed=recipe.seed,
        trust_remote_code=recipe.model.trust_remote_code,
        quantization=recipe.model.quantization,
    )
    model, method = (
        loaded.model,
        build(
            recipe.train.method,
            _peer(recipe),
            recipe.seed,
            recipe.train.delta_dtype,
            recipe.train.reselect_every is not None,
        ),
    )
    for name in selection.indices:
        if f"{name}.weight" in loaded.fresh:
            raise RecipeError(f"{name} is new and trains whole", "select.targets", "leave it out")
    whole = list(loaded.fresh)
    if recipe.train.train_bias:
        biases = (f"{name}.bias" for name in selection.indices)
        parameters = dict(model.named_parameters())
        whole += [name for name in biases if name in parameters and name not in whole]
    try:
        method.attach(model, selection.indices, whole)
    except ValueError as error:
        raise RecipeError(
            f"the model {error}", f"train.method={recipe.train.method}", "choose another method"
        ) from None
    adapted = sum(parameter.numel() for parameter in method.parameters(model))
    if recipe.train.reselect_every is not None:  # a resumed selection holds what rests, too
        adapted = checked.plan.trainable
    elif recipe.train.method in BY_SELECTION:
        adapted = sum(size(index_OK) for index_OK in selection.indices.values())
    return model, method, adapted + sum(parameter.numel() for parameter in method.whole_parameters())


def _choose(recipe: Recipe) -> Choose:
    """The recipe's choice, of weights as they are during training."""
    section = recipe.select
    return partial(choose, k=section.k, criterion=section.criterion, rank=section.lift_rank)


def _peer(recipe: Recipe) -> dict[str, Any] | None:
    return recipe.peer.model_dump() if recipe.peer else None


def _begin(recipe: Recipe, run_dir: Path, selection: Selection) -> None:
    """Only now, with everything known to be right, may a former run go.

    The facts come first: by them the folder is known for a run's if this is killed in between.
    """
    run_folder.clear(run_dir)
    files.write_json(run_dir / run_folder.ENVIRONMENT, environment.facts())
    files.write_text(run_dir / run_folder.RECIPE, to_yaml(recipe))
    write_selection(run_dir / run_folder.SELECTION, selection)


def _adapter(checked: Checked, selection: Selection, state: MethodState, pad_id: int) -> Adapter:
    recipe, task = checked.recipe, checked.task
    path = Path(recipe.model.path).expanduser()
    if state.indices is not None:
        longest = max(index_OK.shape[1] for index_OK in state.indices.values())
        selection = dataclasses.replace(selection, indices=state.indices, k=longest)
    deltas = state.deltas or {name: torch.zeros(i.shape) for name, i in selection.indices.items()}
    settings = {
        "method": recipe.train.method,
        "peer": _peer(recipe),
        "dtype": recipe.model.dtype,
        "quantization": recipe.model.quantization,
        "task": task.name,
        "protocol": recipe.data.protocol,
        "loss_mask": get_protocol(recipe.data.protocol).loss_mask,
        "num_labels": task.num_labels,
        "labels": list(task.labels),
        "pad_token_id": pad_id if task.num_labels is not None else None,
    }
    return Adapter(
        selection,
        deltas,
        state.whole,
        base=str(path.resolve()) if path.is_dir() else recipe.model.path,
        revision=recipe.model.revision,
        task=task.model_task,
        settings=settings,
    )


def _draw(recipe: Recipe, run_dir: Path) -> None:
    size = f", K={recipe.select.k}" if recipe.train.method in BY_SELECTION else ""
    title = f"{recipe.name}: {recipe.train.method}{size}, {recipe.data.task}"
    entries = read_metrics(run_dir / run_folder.METRICS)
    picture.draw(entries, run_dir / run_folder.PICTURE, title)


def _result(
    checked: Checked, progress: Progress, trainable: int, seconds: float, peak_bytes: int
) -> TrainResult:
    run_dir = checked.recipe.run_path
    entries = read_metrics(run_dir / run_folder.METRICS)
    losses = [entry["loss"] for entry in entries if entry["kind"] == "train"]
    return TrainResult(
        run_dir=run_dir,
        best=run_dir / f"checkpoint-{progress.best_step}" if progress.best_step is not None else None,
        last=run_dir / f"checkpoint-{progress.saved}",
        steps=progress.step,
        seconds=seconds,
        peak_bytes=peak_bytes,
        trainable=trainable,
        total=checked.plan.total,
        best_value=progress.best,
        loss=losses[-1] if losses else None,
    )


def _show(result: TrainResult, console: Console) -> None:
    minutes, seconds = divmod(round(result.seconds), 60)
    best = f"; best: {result.best.name} ({result.best_value:.4f})" if result.best else ""
    console.print(
        f"{result.steps} steps in {minutes}:{seconds:02d}, {result.peak_bytes / 1e9:.2f} GB{best}; "
        f"everything is in {shown(result.run_dir)}",
        highlight=False,
        soft_wrap=True,
    )
