"""What a merged folder's weight files will hold: every tensor, where it comes from and what changes in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from neuroada_cli import hub
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.adapter.whole import refuse_whole
from neuroada_cli.delta.targets import shapes_of, targets_of
from neuroada_cli.hub.places import Run
from neuroada_cli.hub.stored import WEIGHT_DTYPES, main_dtype
from neuroada_cli.merging.fit import refuse_headless
from neuroada_cli.selection.file import check_shapes


@dataclass(frozen=True)
class Planned:
    """One tensor of the result.

    name    in the result; source is its name in the base, None for a tensor that the base lacks
    folds   (target, which of its neurons lie here): their deltas are folded in
    parts   (parameter trained whole, which of its rows lie here), where a tensor is not that one parameter
    whole   the trained tensor that takes its place
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    source: str | None = None
    folds: tuple[tuple[str, Run], ...] = ()
    parts: tuple[tuple[str, Run], ...] = ()
    whole: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class _Changes:
    """Of one stored tensor."""

    folds: list[tuple[str, Run]] = field(default_factory=list)
    parts: list[tuple[str, Run]] = field(default_factory=list)
    whole: Tensor | None = None


def make_plan(base: hub.Base, adapter: Adapter, target: torch.dtype, rename: bool) -> list[Planned]:
    """The result's tensors in the order of the base's files, then what the base lacks.

    target  the data type of the result;  rename  it gets the model's own names, and needs a head
    Raises ModelError when the adapter's layers or parameters do not fit the base.
    """
    changes: dict[str, _Changes] = {}
    _plan_folds(base, adapter, changes)
    refuse_whole(base.graph, adapter, str(base.folder))
    fresh = _plan_whole(base, adapter.whole, changes)
    if rename:
        refuse_headless(base, adapter.whole)
    weights = base.weights
    # files that are in the target type already keep odd tensors (fp32 norms) byte for byte
    cast = main_dtype(weights) != target
    kept = _kept(base, target)
    plan = []
    for source, name in (_renamed(base, adapter) if rename else {name: name for name in weights}).items():
        info, change = weights.info(source), changes.get(source)
        dtype = target if change or (cast and info.dtype in WEIGHT_DTYPES) else info.dtype
        if source in kept:  # fp32 for what was changed in fp32, the file's own type else
            dtype = torch.float32 if change else info.dtype
        change = change or _Changes()
        shape = info.shape if change.whole is None else tuple(change.whole.shape)
        plan.append(
            Planned(name, dtype, shape, source, tuple(change.folds), tuple(change.parts), change.whole)
        )
    return plan + [Planned(name, target, tuple(t.shape), whole=t) for name, t in fresh.items()]


def _kept(base: hub.Base, target: torch.dtype) -> set[str]:
    """The stored tensors that are loaded in fp32 though the model is asked for in the target type."""
    names = [name for name in base.graph.state_dict() if base.rules.dtype_of(name, target) != target]
    return {stored for name in names for stored in base.places.names(name)}


def _plan_folds(base: hub.Base, adapter: Adapter, changes: dict[str, _Changes]) -> None:
    """Every stored copy of a tied weight is folded."""
    targets = targets_of(base.graph)
    check_shapes(adapter.selection, shapes_of(targets), str(base.folder))
    for name in adapter.selection.indices:
        for runs in base.runs(name, targets[name]):
            for run in runs:
                changes.setdefault(run.stored, _Changes()).folds.append((name, run))


def _plan_whole(
    base: hub.Base, whole: Mapping[str, Tensor], changes: dict[str, _Changes]
) -> dict[str, Tensor]:
    """What was trained whole, where the base stores it (a tied weight may be there twice); what it lacks."""
    fresh: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        held = base.places.names(name)
        if not held:
            fresh[name] = tensor
            continue
        own = base.places.own_names(name)
        for stored in own:
            changes.setdefault(stored, _Changes()).whole = tensor
        if own != held:
            for run in (run for runs in base.places.whole(name) for run in runs if run.stored not in own):
                changes.setdefault(run.stored, _Changes()).parts.append((name, run))
    return fresh


def _renamed(base: hub.Base, adapter: Adapter) -> dict[str, str]:
    """Stored name -> the model's own name, in file order, without what the model does not use.

    A base model's files name "encoder.layer.0…" what a classifier calls "bert.encoder.layer.0…". When the
    model's names cannot all be found, the files' names stay.
    """
    names: dict[str, str] = {}
    for parameter in base.graph.state_dict():
        stored = base.places.own_name(parameter)
        if stored is not None:
            names.setdefault(stored, parameter)
        elif parameter not in adapter.whole:
            return {name: name for name in base.weights}
    return {name: names[name] for name in base.weights if name in names}
