"""Choosing connections by what training rows say: gradients of the loss, or sizes of the inputs.

The dense gradient of a model never stands in full: layers take turns in groups of at most `budget` bytes, and
every group is a pass over the calibration batches. Inputs need one pass and a vector per layer.

The gradient is that of training's summed loss, added up over all batches: every target counts once, however
they are cut into batches. `gradient` is the size of that sum, so what pulls to and fro cancels out.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli.data.batch import Batch
from neuroada_cli.delta.targets import Target, matrices_of, target_of
from neuroada_cli.errors import NumericsError
from neuroada_cli.loop.loss import LOSSES, logits_are_final
from neuroada_cli.loop.modes import evaluating
from neuroada_cli.loop.recomputing import recomputing
from neuroada_cli.selection import from_files
from neuroada_cli.selection.choice import Choice
from neuroada_cli.selection.criteria import DATA_CRITERIA, choose_by
from neuroada_cli.selection.file import Selection
from neuroada_cli.selection.from_files import LayerChoice
from neuroada_cli.selection.spread import by_counts, joined, tile_means

GRADIENT_BYTES = 2 << 30


def _by_counts(weight_OI: Tensor, count_O: Tensor, criterion: str, measured: Tensor) -> Tensor:
    def rows(chosen_O: Tensor, k: int) -> Tensor:
        own_O = chosen_O.to(weight_OI.device)
        return choose_by(weight_OI[own_O], k, criterion, measured[own_O] if measured.ndim == 2 else measured)

    if 0 < int(count_O.min()) == int(count_O.max()):
        return choose_by(weight_OI, int(count_O[0]), criterion, measured).cpu()
    return by_counts(count_O, rows)


def select_from_rows(
    fingerprint: dict[str, Any],
    model: nn.Module,
    choice: Choice,
    batches: Sequence[Batch],
    kind: str,
    on_layer: Callable[[LayerChoice], None] | None = None,
    budget: int = GRADIENT_BYTES,
    gradient_checkpointing: bool = False,
) -> Selection:
    """The connections of every neuron by `gradient`, `snip` or `activation`.

    fingerprint  of the base that `model` was loaded from; its weights stay as they are, and nothing of it
             requires a gradient after
    batches  of training rows; the loss is training's own, summed over all of them. `activation` takes them
             without padding (`data.batch.unpadded`)
    budget   bytes of fp32 gradients at a time (at least one layer's): gradient criteria take
             ceil(target weights x 4 / budget) passes over the batches
    gradient_checkpointing  recompute each block's activations in the backward pass, as training does
    A fresh head's gradient depends on its seed, so a selection under it does, too. Dropout is off.
    Raises RecipeError for what does not fit the layers, NumericsError where a score is not finite.
    """
    choice.check()
    criterion, spread = choice.criterion, choice.spread
    targets = {name: target_of(model, name) for name in choice.targets}
    model.requires_grad_(False)
    evidence = _inputs if criterion == "activation" else _gradients
    indices: dict[str, Tensor] = {}
    competing = choice.pools()

    def tell(name: str) -> None:
        if on_layer is not None:
            here = ((neurons, weight_OI.cpu()) for neurons, weight_OI in matrices_of(targets[name]))
            on_layer(from_files.described(name, indices[name], here))

    with evaluating(model), recomputing(model, gradient_checkpointing and evidence is _gradients):
        for name, measured in evidence(model, targets, batches, kind, budget):
            chosen = []
            try:
                for neurons, weight_OI in matrices_of(targets[name]):
                    here = measured if measured.ndim == 1 else measured[neurons]
                    if name in competing:
                        score_OI = DATA_CRITERIA[criterion](weight_OI, here)
                        competing[name].add(
                            name, score_OI if spread.tile is None else tile_means(score_OI, spread.tile)
                        )
                        continue
                    chosen.append(_by_counts(weight_OI, choice.counts[name][neurons], criterion, here))
            except ValueError as error:
                raise NumericsError(f"{name}: {error} in calibration", fix="set model.dtype: fp32") from None
            if chosen:
                indices[name] = joined(chosen)
                tell(name)
    if competing:
        indices |= from_files.winners(choice, competing)
        for name in indices:
            tell(name)
    return from_files.as_selection(indices, choice, fingerprint, model)


def _gradients(
    model: nn.Module, targets: Mapping[str, Target], batches: Sequence[Batch], kind: str, budget: int
) -> Iterator[tuple[str, Tensor]]:
    """(name, sum over the batches of d loss / d W: fp32 [O, I]), one group in memory at a time."""
    for group in groups(targets, budget):
        sums: dict[str, Tensor] = {}
        with _collecting(targets, group, sums):
            for batch in batches:
                loss, _ = LOSSES[kind](model, batch.to(targets[group[0]].weight.device))
                if loss.requires_grad:  # a batch may hold no target
                    loss.backward()  # type: ignore[no-untyped-call]
        for name in group:
            weight, layout = targets[name].weight, targets[name].layout
            summed = sums.pop(name, None)
            if summed is None:  # the loss does not depend on it
                summed = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            yield name, layout.rows(summed)


@contextmanager
def _collecting(
    targets: Mapping[str, Target], group: Sequence[str], sums: dict[str, Tensor]
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
        weight = targets[name].weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(collector(name)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle, name in zip(handles, group, strict=True):
            handle.remove()
            targets[name].weight.requires_grad_(False)


def groups(targets: Mapping[str, Target], budget: int) -> list[list[str]]:
    """Names in order, cut so that the fp32 gradients of a group take at most `budget` bytes (or are one)."""
    cut: list[list[str]] = []
    filled = 0
    for name, target in targets.items():
        size = 4 * target.weight.numel()
        if not cut or filled + size > budget:
            cut.append([])
            filled = 0
        cut[-1].append(name)
        filled += size
    return cut


@torch.no_grad()
def _inputs(
    model: nn.Module, targets: Mapping[str, Target], batches: Sequence[Batch], kind: str, budget: int
) -> Iterator[tuple[str, Tensor]]:
    """(name, ||x_i|| over all that goes into the layer: fp32 [I]).

    batches  without padding or a shared head: some layers get their tokens in one row, or only those that a
             router sends them, and from the layout nobody could tell which are none
    """
    assert all(bool(batch.attention_BS.all()) and batch.head_1H is None for batch in batches)
    squares: dict[str, Tensor] = {}

    def adder(name: str) -> Callable[..., None]:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].float()
            square_I = x.reshape(-1, x.shape[-1]).square().sum(dim=0)
            squares[name] = squares[name] + square_I if name in squares else square_I

        return add

    device = next(model.parameters()).device
    if kind == "generation":  # the loss tries a model on one token first, which is none of the batch
        logits_are_final(model, batches[0].tokens_BS.to(device))
    handles = [target.owner.register_forward_pre_hook(adder(name)) for name, target in targets.items()]
    try:
        for batch in batches:
            LOSSES[kind](model, batch.to(device))
    finally:
        for handle in handles:
            handle.remove()
    for name, target in targets.items():
        yield name, squares[name].sqrt() if name in squares else torch.zeros(target.layout.inputs)
