"""Choosing the trainable connections of a whole model from its files, one tensor in memory at a time.

Shared by `select` and `train`; neither needs the model loaded for it.
O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.delta.index import filled, size
from neuroada_cli.delta.quantized import round_trip
from neuroada_cli.delta.targets import sharing_modules
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.stored import check_weight, stored_names
from neuroada_cli.selection.choice import Choice
from neuroada_cli.selection.criteria import choose, low_rank, score, stream
from neuroada_cli.selection.file import Selection
from neuroada_cli.selection.spread import Pool, by_counts, tile_means, whole_tiles


@dataclass(frozen=True)
class LayerChoice:
    """What was chosen in one layer. k is of the longest row, chosen counts them all; smallest and
    mean are of the chosen |w|; columns counts the distinct inputs that at least one neuron chose.
    """

    module: str
    outputs: int
    inputs: int
    k: int
    chosen: int
    smallest: float
    mean: float
    columns: int
    nbytes: int


def select_from_files(
    base: hub.Base,
    choice: Choice,
    on_layer: Callable[[LayerChoice], None] | None = None,
    quantization: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Selection:
    """The connections of every neuron of the targets, read from the base's files.

    Takes what `indices_from_files` does, and raises what it raises.
    """
    indices = indices_from_files(base, choice, on_layer, quantization, dtype)
    return as_selection(indices, choice, base.fingerprint_as_read(), base.graph)


def indices_from_files(
    base: hub.Base,
    choice: Choice,
    on_layer: Callable[[LayerChoice], None] | None = None,
    quantization: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    rows: Mapping[str, slice] | None = None,
) -> dict[str, Tensor]:
    """Layer -> int32 [O, K]: the connections of every neuron of the targets, in the order of the files.

    on_layer  called after each layer, for progress and the table
    quantization, dtype  choose from the weights as bitsandbytes leaves them (computing in dtype), because
              those are what trains
    rows      only these layers, and only so many of their neurons, where a neuron's connections depend on
              its own weights alone (`in_parts`)
    Every layer draws from a random stream of its own, so neither order nor sharding matters.
    Raises RecipeError for what does not fit, ModelError for weights that are missing, misshapen, not finite
    or packed.
    """
    choice.check()
    weights, targets, spread = base.weights, choice.targets, choice.spread
    competing = choice.pools()
    stored = dict(zip(targets, stored_weights(base, targets), strict=True))
    indices: dict[str, Tensor] = {}
    for name in _in_file_order(weights, stored):
        if rows is not None and name not in rows:
            continue
        part = rows[name] if rows is not None else slice(None)
        check_weight(weights, stored[name], name, targets[name])
        tensor = base.read(stored[name]) if rows is None else weights.tensor(stored[name], part)
        weight_OI = targets[name].layout.rows(tensor)
        if quantization is not None:
            weight_OI = round_trip(weight_OI, quantization, dtype)
        generator = stream(choice.seed, name)
        try:
            if name in competing:
                score_OI = score(weight_OI, choice.criterion, generator, choice.rank)
                competing[name].add(
                    name, score_OI if spread.tile is None else tile_means(score_OI, spread.tile)
                )
                continue
            count_O = choice.counts[name][part]
            indices[name] = _chosen(weight_OI, count_O, choice.criterion, generator, choice.rank)
        except ValueError as error:
            raise ModelError(f"{name}: {error}", str(weights.info(stored[name]).file)) from None
        if on_layer is not None:
            on_layer(describe(name, weight_OI, indices[name], weights.info(stored[name]).nbytes))
    if competing:
        indices = winners(choice, competing)
        if on_layer is not None:
            for name in indices:
                weight_OI = targets[name].layout.rows(weights.tensor(stored[name]))
                on_layer(describe(name, weight_OI, indices[name], weights.info(stored[name]).nbytes))
    return indices


def stored_weights(base: hub.Base, targets: Iterable[str]) -> list[str]:
    """The files' name of each target's weight, the first of several."""
    return [stored_names(base.weights, base.graph, name)[0] for name in targets]


def winners(choice: Choice, competing: Mapping[str, Pool]) -> dict[str, Tensor]:
    """Layer -> what it won against the others; as tiles, layers without any are left out."""
    found: dict[str, Tensor] = {}
    for pool in dict.fromkeys(competing.values()):
        found |= pool.indices()
    tile = choice.spread.tile
    if tile is None:
        return found
    return {
        name: whole_tiles(tiles, tile, *choice.shapes[name])
        for name, tiles in found.items()
        if int(tiles.max()) >= 0
    }


def _chosen(
    weight_OI: Tensor, count_O: Tensor, criterion: str, generator: torch.Generator, rank: int
) -> Tensor:
    """Every neuron's own number of columns; `lift` approximates the whole matrix, whoever gets any."""
    alike = 0 < int(count_O.min()) == int(count_O.max())
    if criterion == "lift" and not alike:
        weight_OI, criterion = low_rank(weight_OI, rank), "magnitude"
    if alike:
        return choose(weight_OI, int(count_O[0]), criterion, generator, rank)
    return by_counts(
        count_O, lambda rows_O, k: choose(weight_OI[rows_O].contiguous(), k, criterion, generator, rank)
    )


def as_selection(
    indices: Mapping[str, Tensor], choice: Choice, fingerprint: dict[str, Any], model: nn.Module
) -> Selection:
    """The chosen columns, in the order of the targets, with what ties them to their base."""
    chosen = {name: indices[name] for name in choice.targets if name in indices}
    return Selection(
        indices=chosen,
        k=max(index_OK.shape[1] for index_OK in chosen.values()),
        criterion=choice.label,
        fingerprint=fingerprint,
        tied={name: others for name, others in sharing_modules(model, chosen).items() if others},
    )


def _in_file_order(weights: hub.Weights, stored: Mapping[str, str]) -> list[str]:
    position = {tensor: place for place, tensor in enumerate(weights)}
    return sorted(stored, key=lambda name: position[stored[name]])


def describe(name: str, weight_OI: Tensor, index_OK: Tensor, nbytes: int) -> LayerChoice:
    index_filled_OK, real_OK = filled(index_OK)
    chosen_N = weight_OI.gather(1, index_filled_OK.long()).float().abs_().view(-1)
    column_N = index_filled_OK.view(-1).long()
    if real_OK is not None:
        chosen_N, column_N = chosen_N[real_OK.view(-1)], column_N[real_OK.view(-1)]
    used_I = torch.zeros(weight_OI.shape[1], dtype=torch.bool)
    used_I[column_N] = True
    return LayerChoice(
        module=name,
        outputs=weight_OI.shape[0],
        inputs=weight_OI.shape[1],
        k=index_OK.shape[1],
        chosen=size(index_OK),
        smallest=float(chosen_N.min()) if len(chosen_N) else 0.0,
        mean=float(chosen_N.mean()) if len(chosen_N) else 0.0,
        columns=int(used_I.sum()),
        nbytes=nbytes,
    )
