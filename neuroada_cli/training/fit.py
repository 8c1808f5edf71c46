"""Training itself, once everything is checked: selection, model, loop, and what is left behind.

K = chosen inputs per neuron
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from torch import nn

from neuroada_cli import files, hub
from neuroada_cli.adapter import base_name
from neuroada_cli.adapter import folder as adapters
from neuroada_cli.adapter.folder import Adapter, AdapterFolder
from neuroada_cli.data.inputs import aligned_padding
from neuroada_cli.delta.targets import ALL_LINEAR, find_targets, parameter_name
from neuroada_cli.errors import NumericsError, PeerError, RecipeError, UserError
from neuroada_cli.hub.sharded import load_sharded
from neuroada_cli.loop.causality import check_causality
from neuroada_cli.loop.loop import Progress, train
from neuroada_cli.loop.numerics import refuse_not_numbers
from neuroada_cli.loop.packing import check_packing
from neuroada_cli.loop.padding import READS_PADDING, reads_padding
from neuroada_cli.machine import environment
from neuroada_cli.machine.allocator import keeping_freed_memory
from neuroada_cli.machine.memory import peak_memory
from neuroada_cli.methods.protocol import Method
from neuroada_cli.methods.state import MethodState
from neuroada_cli.ranks.group import ALONE, Ranks
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.selection.criteria import choose as choose_in
from neuroada_cli.selection.file import SAME_BASE, Selection, check_base, check_ties, write_selection
from neuroada_cli.show.figures import drawn
from neuroada_cli.show.notes import say, tell
from neuroada_cli.tasks.loss_mask import loss_mask_of
from neuroada_cli.tasks.registry import get_protocol
from neuroada_cli.training import choose, picture, report
from neuroada_cli.training import folder as run_folder
from neuroada_cli.training.advice import advised
from neuroada_cli.training.checkpoint import RunCheckpoints
from neuroada_cli.training.heads import check_heads
from neuroada_cli.training.live import LiveReport, SilentReport
from neuroada_cli.training.log import MetricsLog, read_metrics
from neuroada_cli.training.preflight import Checked
from neuroada_cli.training.remarks import left_out
from neuroada_cli.training.samples import Sampler, sampler
from neuroada_cli.training.settings import dtype_of, loop_settings
from neuroada_cli.training.trackers import tracked


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run left behind; after a dry run there are no folders, steps are those to come.

    best        the checkpoint with the best evaluation; None without validation rows
    best_value  its validation loss, or the task's metric
    loss        mean training loss of the last step
    peak_bytes  of memory; of a dry run: predicted
    """

    run_dir: Path
    best: Path | None = None
    last: Path | None = None
    steps: int
    seconds: float = 0.0
    peak_bytes: int
    trainable: int
    total: int
    best_value: float | None = None
    loss: float | None = None


def fit(
    checked: Checked,
    source: AdapterFolder | None,
    console: Console,
    ranks: Ranks = ALONE,
    stream: TextIO | None = None,
) -> TrainResult:
    """Train into the recipe's run folder, which the caller holds the lock of.

    source  the checkpoint to go on from; None: from the start
    ranks   the processes that train together, of which rank 0 writes
    stream  where rank 0 says every step as a JSON object a line, instead of to the console
    """
    recipe, run_dir, started = checked.recipe, checked.recipe.run_path, time.perf_counter()
    with advised(checked, "choosing connections"):
        selection = _selection(checked, source, console, ranks)
    in_use = hub.InUse(checked.base.weights, selection.fingerprint)
    with advised(checked, "loading the model"):
        attached = _attached_in_parts if ranks.sharded else _attached
        model, method, trainable = attached(checked, selection, ranks)
    data = checked.rows.data
    check_causality(model, data.train[0], data.pad_id, data.features)
    if recipe.train.packing:
        check_packing(model, data.train)
    if recipe.train.share_prefix:
        check_heads(model, data.train, data.pad_id)
    if data.kind != "generation":
        data = dataclasses.replace(data, pad_id=aligned_padding(model, checked.reader))
        if reads_padding(model, data.train, data.pad_id, data.features):
            say(console, f"{type(model).__name__} {READS_PADDING}")
    if source is None:
        ranks.first_does(lambda: _begin(recipe, run_dir, selection))
    log = MetricsLog(run_dir / run_folder.METRICS)
    checkpoints = RunCheckpoints(
        run_dir,
        adapter=lambda state: _adapter(checked, selection, state, data.pad_id),
        tokenizer=checked.reader.tokenizer,
        recipe_yaml=to_yaml(recipe),
        recipe=recipe.model_dump(mode="json"),
        data=checked.rows.hashes,
        keep=recipe.train.keep,
        log_position=log.settled,
        cut_log=log.cut,
        source=source,
        start=checked.start,
        ranks=ranks,
    )
    device = torch.device(checked.device)
    indices = selection.indices if checked.plan.facts.chosen else {}
    try:
        keeping = keeping_freed_memory() if checked.device == "cpu" else contextlib.nullcontext()
        asked = sampler(checked, model, ranks) if ranks.first else None
        reported = (
            _report(recipe, source, log, console, device, stream, asked) if ranks.first else SilentReport()
        )
        with advised(checked, "training"), keeping, reported as report:
            settings, section = loop_settings(recipe), recipe.select
            again = partial(choose_in, k=section.k, criterion=section.criterion, rank=section.lift_rank)
            wanted = _wanted(checked, selection)
            progress = train(
                model, method, data, settings, checkpoints, report, indices, again, ranks, wanted
            )
    except UserError as error:
        if isinstance(error, PeerError) or not ranks.first:
            raise
        with contextlib.suppress(UserError):  # the picture matters less than what went wrong
            _draw(checked)
        if isinstance(error, NumericsError):  # of frozen weights that moved, or of what came out of them
            in_use.refuse_written_to(model)
        raise
    ranks.first_does(lambda: _draw(checked, trainable))
    return _result(checked, progress, trainable, time.perf_counter() - started, peak_memory(device))


@contextlib.contextmanager
def _report(
    recipe: Recipe,
    source: AdapterFolder | None,
    log: MetricsLog,
    console: Console,
    device: torch.device,
    stream: TextIO | None,
    samples: Sampler | None,
) -> Iterator[LiveReport]:
    """What a run says of itself: its live line, its log and its trackers."""
    resumed_at = None if source is None else int(source.folder.name.rpartition("-")[2])
    with (
        tracked(recipe, resumed_at, lambda line: tell([line])) as track,
        LiveReport(log, device, console, stream, track, samples) as report,
    ):
        yield report


def _selection(checked: Checked, source: AdapterFolder | None, console: Console, ranks: Ranks) -> Selection:
    """Stored once and reused ever after: the checkpoint's, the given one, or a new one."""
    if source is not None:
        selection = adapters.read_adapter(source).selection
        check_base(selection.fingerprint, checked.base)
        console.print(SAME_BASE, style="dim")
        return selection
    if checked.given is not None:  # it was compared with the base when it was read
        console.print(SAME_BASE, style="dim")
        return checked.given
    with console.status("choosing connections"):
        return choose.select(
            checked.recipe,
            checked.base,
            checked.choice,
            data=checked.rows.data,
            reader=checked.reader,
            device=checked.device,
            ranks=ranks,
        )


def _attached_in_parts(checked: Checked, selection: Selection, ranks: Ranks) -> tuple[nn.Module, Method, int]:
    """The same of a model whose rows are dealt to the ranks; it never stands whole in one of them."""
    recipe, settings = checked.recipe, checked.recipe.model
    method: Method = checked.plan.facts.build_sharded(ranks)
    try:
        model = load_sharded(
            checked.base, selection.indices, dtype_of(recipe), ranks,
            torch.device(checked.device), settings.attention, settings.quantization,
            {"fp32": torch.float32, "bf16": torch.bfloat16}[recipe.train.delta_dtype],
        )  # fmt: skip
        method.attach(model, selection.indices)
    except ValueError as error:
        raise RecipeError(
            str(error), "train.parallel=shard", "set train.parallel: replicate, or leave it out"
        ) from None
    ranks.all_do(lambda: refuse_not_numbers(model, str(checked.base.folder)))
    return model, method, selection.connections


def _attached(checked: Checked, selection: Selection, ranks: Ranks) -> tuple[nn.Module, Method, int]:
    """(model with the method on it, the method, how many numbers train)."""
    recipe, facts = checked.recipe, checked.plan.facts
    loaded = choose.load(recipe, checked.base, checked.device)
    if any(name not in checked.base.hashes for name in checked.base.weights):  # else it was looked at already
        refuse_not_numbers(loaded.model, str(checked.base.folder))
    model, reselects = loaded.model, recipe.train.reselect_every is not None
    peer = recipe.peer.model_dump() if recipe.peer else None
    method: Method = facts.build(peer, recipe.seed, recipe.train.delta_dtype, reselects)
    for name in selection.indices:
        if parameter_name(model, name) in loaded.fresh:
            raise RecipeError(f"{name} is new and trains whole", "select.targets", "leave it out")
    if facts.chosen:
        check_ties(selection, model, str(checked.base.folder))
    whole = list(loaded.fresh)
    if recipe.train.train_bias:
        biases = (bias for name in selection.indices for bias in (f"{name}.bias", f"{name}_bias"))
        parameters = dict(model.named_parameters())
        whole += [name for name in biases if name in parameters and name not in whole]
    try:
        method.attach(model, selection.indices, whole)
    except ValueError as error:
        raise RecipeError(
            f"the model {error}", f"train.method={recipe.train.method}", "choose another method"
        ) from None
    adapted = sum(parameter.numel() for parameter in method.parameters(model))
    if reselects:  # a resumed selection holds what rests, too
        adapted = checked.plan.trainable
    elif facts.chosen:
        adapted = selection.connections
    return model, method, adapted + sum(parameter.numel() for parameter in method.whole_parameters())


def _wanted(checked: Checked, selection: Selection) -> dict[str, list[str]]:
    """Entry of `select.targets` that names layers -> those of them that the method adapts."""
    if not (checked.plan.facts.chosen or checked.plan.facts.linear_only):
        return {}
    entries = [entry for entry in checked.recipe.select.targets if entry != ALL_LINEAR]
    parts = hub.parts_of(checked.base.graph)
    found = {}
    for entry in entries if checked.recipe.select.file is None else ():
        named = find_targets(checked.base.graph, [entry], parts=parts)
        found[entry] = [name for name in named if name in selection.indices]
    return found


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
    base, revision = base_name.told(recipe.model.path, recipe.model.revision)
    if state.indices is not None:
        longest = max(index_OK.shape[1] for index_OK in state.indices.values())
        selection = dataclasses.replace(selection, indices=state.indices, k=longest)
    deltas = state.deltas or {name: torch.zeros(i.shape) for name, i in selection.indices.items()}
    settings = {
        "method": recipe.train.method,
        "peer": recipe.peer.model_dump() if recipe.peer else None,
        "dtype": recipe.model.dtype,
        "quantization": recipe.model.quantization,
        "task": task.name,
        "protocol": recipe.data.protocol,
        "loss_mask": loss_mask_of(recipe.data, task, get_protocol(recipe.data.protocol)),
        "num_labels": task.num_labels,
        "labels": list(task.labels),
        "pad_token_id": pad_id if task.num_labels is not None else None,
    }
    if left := list(left_out(checked)):
        settings["left_out"] = left
    return Adapter(
        selection,
        deltas,
        state.whole,
        base=base,
        revision=revision,
        task=checked.base.task,
        settings=settings,
    )


def _draw(checked: Checked, trainable: int | None = None) -> None:
    """The picture, and the report once the run is over."""
    recipe, run_dir = checked.recipe, checked.recipe.run_path
    size = f", K={recipe.select.k}" if checked.plan.facts.chosen else ""
    title = f"{recipe.name}: {recipe.train.method}{size}, {recipe.data.task}"
    entries = read_metrics(run_dir / run_folder.METRICS)
    place, page = run_dir / run_folder.PICTURE, run_dir / run_folder.REPORT
    drawn(lambda: picture.draw(entries, place, title), place)
    if trainable is not None:
        drawn(lambda: report.write(page, checked, entries, trainable), page)


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
