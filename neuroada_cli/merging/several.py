"""Several adapters of one base as one: the weighted sum of their deltas, before anything is rounded.

    delta = sum over adapters of weight * delta of the adapter

A connection that only one of them chose gets that one's delta alone, so adapters that share none add exactly;
one that several chose is an overlap, which is counted. A weight of -1 takes an adapter away again.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuroada_cli import hub
from neuroada_cli.adapter.config import method_of
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.file import Selection
from neuroada_cli.show.numbers import counted

TRUE = torch.tensor(True)
# what one merged model can have only one of
ONE_OF = ("dtype", "quantization", "num_labels", "labels", "pad_token_id")


@dataclass(frozen=True)
class Overlap:
    """connections  that at least one adapter chose
    shared   that several chose;  opposed  of those, where their weighted deltas point in opposite directions
    """

    connections: int
    shared: int
    opposed: int


def combine(adapters: Sequence[tuple[str, Adapter]], weights: Sequence[float]) -> tuple[Adapter, Overlap]:
    """One adapter that is the weighted sum of several, and what they had in common.

    adapters  (folder, adapter), for messages
    Whether their base is the same one is for the caller to check, who opens it.
    Raises RecipeError for weights that do not fit, ModelError for adapters that cannot be added: of another
    data type or kind of model, of a method that chooses no connections, or with parts trained whole that no
    sum of deltas can hold.
    """
    if len(weights) != len(adapters):
        raise RecipeError(
            f"{counted(len(weights), 'number')} for {counted(len(adapters), 'adapter')}",
            "--weights",
            "give one for each, like 1,0.5",
        )
    if not any(weights):
        raise RecipeError("are all zero, so nothing would be merged", "--weights")
    first_place, first = adapters[0]
    for place, adapter in adapters:
        _refuse_other_kind(adapter, place)
        _refuse_difference(first, first_place, adapter, place)
    whole = _whole(adapters, weights)
    modules = list(dict.fromkeys(name for _, adapter in adapters for name in adapter.deltas))
    indices, deltas, counts = {}, {}, torch.zeros(3, dtype=torch.long)
    for module in modules:
        parts = [
            (adapter.selection.indices[module], weight * adapter.deltas[module])
            for (_, adapter), weight in zip(adapters, weights, strict=True)
            if module in adapter.deltas
        ]
        rows = {index_OK.shape[0] for index_OK, _ in parts}
        if len(rows) > 1:
            raise ModelError(f"{module} has {' and '.join(map(str, sorted(rows)))} rows", first_place)
        indices[module], deltas[module], found = _sum(parts)
        counts += found
    criteria = list(dict.fromkeys(adapter.selection.criterion for _, adapter in adapters))
    tied: dict[str, list[str]] = {}
    for _, adapter in adapters:
        tied |= adapter.selection.tied
    k = max(index_OK.shape[1] for index_OK in indices.values())
    selection = Selection(indices, k, " and ".join(criteria), _fingerprint(adapters), tied)
    settings = _common(adapter.settings for _, adapter in adapters)
    merged = Adapter(selection, deltas, whole, first.base, first.revision, first.task, settings)
    return merged, Overlap(*counts.tolist())


def _sum(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """(index [O, K], delta [O, K], counts as in `Overlap`) of (index, weighted delta) of one layer."""
    outputs = parts[0][0].shape[0]
    keys, values = [], []
    for index_OK, delta_OK in parts:
        real_OK = index_OK >= 0
        rows_O1 = torch.arange(outputs)[:, None]
        keys.append(((rows_O1 << 32) + index_OK)[real_OK])
        values.append(delta_OK[real_OK])
    flat, entry, times = torch.unique(torch.cat(keys), return_inverse=True, return_counts=True)
    every = torch.cat(values)
    total = torch.zeros(len(flat), dtype=torch.float32).index_add_(0, entry, every)
    up, down = (
        torch.zeros(len(flat), dtype=torch.bool).index_put_((entry[side],), TRUE)
        for side in (every > 0, every < 0)
    )
    counts = torch.tensor([len(flat), int((times > 1).sum()), int((up & down).sum())])
    rows, columns = flat >> 32, flat & 0xFFFFFFFF
    per_row = torch.bincount(rows, minlength=outputs)
    place = torch.arange(len(flat)) - (per_row.cumsum(0) - per_row)[rows]
    index_OK = torch.full((outputs, int(per_row.max())), -1, dtype=torch.int32)
    delta_OK = torch.zeros(index_OK.shape)
    index_OK[rows, place] = columns.to(torch.int32)
    delta_OK[rows, place] = total
    return index_OK, delta_OK, counts


def _refuse_other_kind(adapter: Adapter, place: str) -> None:
    method = method_of(adapter.settings)
    if not METHODS[method].chosen:
        raise ModelError(
            f"was trained by {method}, whose changes are no deltas of connections", place, "merge it alone"
        )


def _refuse_difference(first: Adapter, first_place: str, adapter: Adapter, place: str) -> None:
    if adapter.task != first.task:
        raise ModelError(f"is for {adapter.task}, and {first_place} for {first.task}", place)
    for key in ONE_OF:
        one, other = first.settings.get(key), adapter.settings.get(key)
        if one != other:
            raise ModelError(f"was trained with {key} {other}, and {first_place} with {one}", place)


def _whole(adapters: Sequence[tuple[str, Adapter]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Parameters trained whole take the base's place, so only one adapter may bring each, as it is."""
    found: dict[str, Tensor] = {}
    for (place, adapter), weight in zip(adapters, weights, strict=True):
        for name, tensor in adapter.whole.items():
            if name in found or weight != 1:
                why = "another adapter brings it, too" if name in found else f"its weight is {weight:g}"
                raise ModelError(
                    f"{name} was trained whole, and {why}", place, "only one adapter of weight 1 may bring it"
                )
            found[name] = tensor
    return found


def _fingerprint(adapters: Sequence[tuple[str, Adapter]]) -> dict[str, Any]:
    """The base's, with the hashes that any of the adapters' selections took of whole tensors."""
    known = dict(adapters[0][1].selection.fingerprint)
    hashes: dict[str, Any] = {}
    for _, adapter in adapters:
        found = adapter.selection.fingerprint.get(hub.HASHES)
        hashes |= found if isinstance(found, dict) else {}
    return known | ({hub.HASHES: hashes} if hashes else {})


def _common(settings: Any) -> dict[str, Any]:
    """What all of them say alike."""
    first, *others = settings
    shared: Mapping[str, Any] = first
    return {
        key: value
        for key, value in shared.items()
        if all(key in other and other[key] == value for other in others)
    }
