"""Choosing connections by what training rows say: gradients of the loss, or sizes of the inputs.

The dense gradient of a model never stands in full: layers take turns in groups of at most `budget` bytes, and
every group is a pass over the calibration batches. Inputs need one pass and a vector per layer.

The gradient is that of training's summed loss, added up over all batches: every target counts once, however
they are cut into batches. `gradient` is the size of that sum, so what pulls to and fro cancels out.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli import hub, selecting
from neuroada_cli.adapter import Selection
from neuroada_cli.data.batch import Batch, align_padding
from neuroada_cli.delta.selection import DATA_CRITERIA, choose_by
from neuroada_cli.delta.spread import Spread, by_counts, tile_means
from neuroada_cli.errors import NumericsError
from neuroada_cli.recipe import Recipe
from neuroada_cli.selecting import LayerChoice, neurons_as_rows
from neuroada_cli.tasks.task import Task
from neuroada_cli.training.loop import Schedule, TrainData
from neuroada_cli.training.loss import LOSSES
from neuroada_cli.training.preflight import loop_settings
from neuroada_cli.training.recomputing import recomputing

GRADIENT_BYTES = 2 << 30


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
        spread=selecting.spread_of(section), seed=recipe.seed,
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


def _by_counts(weight_OI: Tensor, count_O: Tensor, criterion: str, measured: Tensor) -> Tensor:
    def rows(chosen_O: Tensor, k: int) -> Tensor:
        own_O = chosen_O.to(weight_OI.device)
        return choose_by(weight_OI[own_O], k, criterion, measured[own_O] if measured.ndim == 2 else measured)

    if 0 < int(count_O.min()) == int(count_O.max()):
        return choose_by(weight_OI, int(count_O[0]), criterion, measured).cpu()
    return by_counts(count_O, rows)


def select_by_data(
    folder: Path,
    model: nn.Module,
    targets: Sequence[str],
    k: int,
    criterion: str,
    batches: Sequence[Batch],
    kind: str,
    on_layer: Callable[[LayerChoice], None] | None = None,
    budget: int = GRADIENT_BYTES,
    spread: Spread | None = None,
    seed: int = 0,
    gradient_checkpointing: bool = False,
) -> Selection:
    """The K connections of every neuron by `gradient`, `snip` or `activation`.

    model    loaded from `folder`; its weights stay as they are, and nothing of it requires a gradient after
    batches  of training rows; the loss is training's own, summed over all of them
    budget   bytes of fp32 gradients at a time (at least one layer's): gradient criteria take
             ceil(target weights x 4 / budget) passes over the batches
    spread   who gets how many, where that is not K for every neuron;  seed  of what it draws
    gradient_checkpointing  recompute each block's activations in the backward pass, as training does
    A fresh head's gradient depends on its seed, so a selection under it does, too. Dropout is off.
    Raises NumericsError where a score is not finite.
    """
    modules = {name: model.get_submodule(name) for name in targets}
    spread = spread or Spread(k)
    count_by_layer = selecting.connections(modules, spread, seed)
    was_training = model.training
    model.eval().requires_grad_(False)
    evidence = _inputs if criterion == "activation" else _gradients
    indices: dict[str, Tensor] = {}
    competing = selecting.pools(spread, count_by_layer)

    def tell(name: str, weight_OI: Tensor) -> None:
        if on_layer is not None:
            size = weight_OI.numel() * weight_OI.element_size()
            on_layer(selecting.describe(name, weight_OI.cpu(), indices[name], size))

    with recomputing(model, gradient_checkpointing and evidence is _gradients):
        for name, measured in evidence(model, modules, batches, kind, budget):
            weight_OI = neurons_as_rows(_weight(modules[name]).detach(), modules[name])
            try:
                if name in competing:
                    score_OI = DATA_CRITERIA[criterion](weight_OI, measured)
                    competing[name].add(
                        name, score_OI if spread.tile is None else tile_means(score_OI, spread.tile)
                    )
                    continue
                indices[name] = _by_counts(weight_OI, count_by_layer[name], criterion, measured)
            except ValueError as error:
                raise NumericsError(f"{name}: {error} in calibration", fix="set model.dtype: fp32") from None
            tell(name, weight_OI)
    for pool in dict.fromkeys(competing.values()):
        indices |= pool.indices()
    if spread.tile is not None:
        indices = selecting.as_whole_tiles(indices, spread.tile, modules)
    for name in indices if competing else ():
        tell(name, neurons_as_rows(_weight(modules[name]).detach(), modules[name]))
    model.train(was_training)
    chosen = {name: indices[name] for name in targets if name in indices}
    return selecting.as_selection(chosen, selecting.label(criterion, spread), folder, model)


def _weight(module: nn.Module) -> nn.Parameter:
    assert isinstance(module.weight, nn.Parameter)
    return module.weight


def _gradients(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Sequence[Batch], kind: str, budget: int
) -> Iterator[tuple[str, Tensor]]:
    """(name, sum over the batches of d loss / d W: fp32 [O, I]), one group in memory at a time."""
    for group in groups(modules, budget):
        sums: dict[str, Tensor] = {}
        with _collecting(modules, group, sums):
            for batch in batches:
                loss, _ = LOSSES[kind](model, batch.to(_weight(modules[group[0]]).device))
                if loss.requires_grad:  # a batch may hold no target
                    loss.backward()  # type: ignore[no-untyped-call]
        for name in group:
            weight = _weight(modules[name])
            summed = sums.pop(name, None)
            if summed is None:  # the loss does not depend on it
                summed = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            yield name, neurons_as_rows(summed, modules[name])


@contextmanager
def _collecting(
    modules: Mapping[str, nn.Module], group: Sequence[str], sums: dict[str, Tensor]
) -> Iterator[None]:
    """Inside, the group's weights ask for gradients, and each goes to its fp32 sum as soon as it is made."""

    def collector(name: str) -> Callable[[Tensor], None]:
        def collect(parameter: Tensor) -> None:
            assert parameter.grad is not None  # autograd calls this right after it stored the gradient
            if name in sums:
                sums[name].add_(parameter.grad)
            else:
                sums[name] = parameter.grad.float()
            parameter.grad = None

        return collect

    handles = []
    for name in group:
        weight = _weight(modules[name]).requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(collector(name)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle, name in zip(handles, group, strict=True):
            handle.remove()
            _weight(modules[name]).requires_grad_(False)


def groups(modules: Mapping[str, nn.Module], budget: int) -> list[list[str]]:
    """Names in order, cut so that the fp32 gradients of a group take at most `budget` bytes (or are one)."""
    cut: list[list[str]] = []
    filled = 0
    for name, module in modules.items():
        size = 4 * _weight(module).numel()
        if not cut or filled + size > budget:
            cut.append([])
            filled = 0
        cut[-1].append(name)
        filled += size
    return cut


@torch.no_grad()
def _inputs(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Sequence[Batch], kind: str, budget: int
) -> Iterator[tuple[str, Tensor]]:
    """(name, ||x_i|| over all tokens that are no padding: fp32 [I])."""
    squares: dict[str, Tensor] = {}
    attention = [torch.empty(0)]

    def adder(name: str) -> Callable[..., None]:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].float()
            if x.ndim == 3 and x.shape[:-1] != attention[0].shape:
                return  # not the batch: the loss tries a model on one token first
            if x.ndim == 3:
                x = x[attention[0].bool()]
            square_I = x.reshape(-1, x.shape[-1]).square().sum(dim=0)
            squares[name] = squares[name] + square_I if name in squares else square_I

        return add

    handles = [module.register_forward_pre_hook(adder(name)) for name, module in modules.items()]
    device = next(model.parameters()).device
    try:
        for batch in batches:
            moved = batch.to(device)
            attention[0] = moved.attention_BS
            LOSSES[kind](model, moved)
    finally:
        for handle in handles:
            handle.remove()
    for name, module in modules.items():
        yield name, squares[name].sqrt() if name in squares else torch.zeros(_inputs_of(module))


def _inputs_of(module: nn.Module) -> int:
    return selecting.layer_shape(module)[1]
