"""Choosing the trainable connections of a whole model from its files, one tensor in memory at a time.

Shared by `select` and `train`; neither needs the model loaded for it.
O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.delta.finite import all_finite, broken_row
from neuroada_cli.delta.index import filled, size
from neuroada_cli.delta.quantized import round_trip
from neuroada_cli.delta.targets import Target, sharing_modules
from neuroada_cli.errors import ModelError
from neuroada_cli.selection.choice import Choice
from neuroada_cli.selection.criteria import choose, low_rank, stream
from neuroada_cli.selection.file import Selection
from neuroada_cli.selection.spread import Pool, by_counts, joined, whole_tiles


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
    competing, packed = choice.pools(), set(hub.packed_layers(base.graph)) if quantization else set()
    stored = dict(zip(choice.targets, stored_weights(base, choice.targets), strict=True))
    indices: dict[str, Tensor] = {}

    def matrices(name: str, part: slice | None) -> Iterator[tuple[slice, Tensor]]:
        for neurons, weight_OI in base.matrices(name, choice.targets[name], part):
            if quantization is not None and name in packed:
                weight_OI = round_trip(weight_OI, quantization, dtype)
            yield neurons, weight_OI

    for name in _in_file_order(base.weights, stored):
        if rows is not None and name not in rows:
            continue
        generator = stream(choice.seed, name)
        seen, chosen = LayerChoices(), []
        for neurons, weight_OI in matrices(name, None if rows is None else rows[name]):
            try:
                if name in competing:
                    competing[name].add(name, choice.scored(weight_OI, generator))
                    continue
                count_O = choice.counts[name][neurons]
                chosen.append(_chosen(weight_OI, count_O, choice.criterion, generator, choice.rank))
            except ValueError as error:
                where = str(base.weights.info(stored[name]).file)
                if all_finite(weight_OI):
                    raise ModelError(f"{name}: {error}", where) from None
                said = f"{name}: row {neurons.start + broken_row(weight_OI)} holds NaN or infinity"
                raise ModelError(said, where, "download it again") from None
            if on_layer is not None:
                seen.add(weight_OI, chosen[-1])
        if chosen:
            indices[name] = joined(chosen)
            if on_layer is not None:
                on_layer(seen.of(name))
    if competing:
        indices = winners(choice, competing)
        if on_layer is not None:
            for name, index_OK in indices.items():
                on_layer(described(name, index_OK, matrices(name, slice(None))))
    return indices


def stored_weights(base: hub.Base, targets: Mapping[str, Target]) -> list[str]:
    """The files' name of each target's weight, the first of several."""
    return [base.runs(name, target)[0][0].stored for name, target in targets.items()]


def winners(choice: Choice, competing: Mapping[str, Pool]) -> dict[str, Tensor]:
    """Layer -> what it won against the others; as tiles, layers without any are left out."""
    found: dict[str, Tensor] = {}
    tile = choice.spread.tile
    for pool in dict.fromkeys(competing.values()):
        for name, matrices in pool.matrices().items():
            if tile is not None:
                layout = choice.targets[name].layout
                if all(int(tiles.max()) < 0 for tiles in matrices):
                    continue
                matrices = [whole_tiles(tiles, tile, layout.outputs, layout.inputs) for tiles in matrices]
            found[name] = joined(matrices)
    return found


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


class LayerChoices:
    """What was chosen in a layer, matrix by matrix."""

    def __init__(self) -> None:
        self._size_N: list[Tensor] = []
        self._used_I = torch.zeros(0, dtype=torch.bool)
        self._outputs = self._chosen = self._longest = self._nbytes = 0

    def add(self, weight_OI: Tensor, index_OK: Tensor) -> None:
        """Take note of a matrix and the columns that were chosen in it."""
        filled_OK, real_OK = filled(index_OK)
        size_OK = weight_OI.gather(1, filled_OK.long()).float().abs_()
        column_N = filled_OK.view(-1) if real_OK is None else filled_OK[real_OK]
        self._size_N.append(size_OK.view(-1) if real_OK is None else size_OK[real_OK])
        if len(self._used_I) == 0:
            self._used_I = torch.zeros(weight_OI.shape[1], dtype=torch.bool)
        self._used_I[column_N.long()] = True
        self._outputs += len(weight_OI)
        self._chosen += size(index_OK)
        self._longest = max(self._longest, index_OK.shape[1])
        self._nbytes += weight_OI.numel() * weight_OI.element_size()

    def of(self, name: str) -> LayerChoice:
        size_N = torch.cat(self._size_N)
        return LayerChoice(
            module=name,
            outputs=self._outputs,
            inputs=len(self._used_I),
            k=self._longest,
            chosen=self._chosen,
            smallest=float(size_N.min()) if len(size_N) else 0.0,
            mean=float(size_N.mean()) if len(size_N) else 0.0,
            columns=int(self._used_I.sum()),
            nbytes=self._nbytes,
        )


def described(name: str, index_OK: Tensor, matrices: Iterable[tuple[slice, Tensor]]) -> LayerChoice:
    """What a finished choice of a layer chose."""
    seen = LayerChoices()
    for neurons, weight_OI in matrices:
        seen.add(weight_OI, index_OK[neurons])
    return seen.of(name)
