"""Choosing the trainable connections of a whole model from its files, one tensor in memory at a time.

Shared by `select` and `train`; neither needs the model loaded for it.
O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.adapter import Selection
from neuroada_cli.delta.linear import is_conv1d
from neuroada_cli.delta.model import block_number, find_targets, sharing_modules
from neuroada_cli.delta.quantized import round_trip
from neuroada_cli.delta.selection import CRITERIA, DATA_CRITERIA, LIFT_RANK, choose, low_rank, score
from neuroada_cli.delta.spread import (
    Pool,
    Spread,
    by_counts,
    counts,
    filled,
    size,
    tile_means,
    tiles_of,
    whole_tiles,
)
from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.recipe import SelectSection

SELECTABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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


def target_layers(
    skeleton: nn.Module,
    weights: hub.Weights,
    include: Sequence[str],
    exclude: Sequence[str] = (),
    layers: Sequence[int] | None = None,
) -> dict[str, nn.Module]:
    """Module name -> layer (on the meta device) that the recipe's select section means.

    `all-linear` leaves out the output head, classification heads, and a pooler that the files lack.
    Raises RecipeError for an entry that matches nothing.
    """
    prefix = skeleton.base_model_prefix
    heads = hub.default_exclude(skeleton)
    heads += [
        name
        for name, _ in skeleton.named_modules()
        if hub.is_pooler(name) and hub.stored_name(weights, f"{name}.weight", str(prefix)) is None
    ]
    try:
        return find_targets(skeleton, include, exclude, layers, heads)
    except ValueError as error:
        raise RecipeError(str(error), "select") from None


def layer_shape(module: nn.Module) -> tuple[int, int]:
    """(O, I) of a linear layer; GPT-2's Conv1D stores its weight as [I, O]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (columns, rows) if is_conv1d(module) else (rows, columns)


def connections(targets: Mapping[str, nn.Module], spread: Spread, seed: int) -> dict[str, Tensor]:
    """Layer -> connections per neuron [O]. Raises RecipeError for what does not fit the layers."""
    if spread.plain:
        check_k(targets, spread.k)
    try:
        return counts(spread, {name: layer_shape(module) for name, module in targets.items()}, seed)
    except ValueError as error:
        raise RecipeError(str(error), "select") from None


def trainable_count(targets: Mapping[str, nn.Module], spread: Spread, seed: int = 0) -> int:
    """How many numbers train: K x (rows of all targets), where every neuron gets K."""
    total = sum(int(count_O.sum()) for count_O in connections(targets, spread, seed).values())
    return total if spread.tile is None else tiles_of(total, spread.tile) * spread.tile**2


def spread_of(section: SelectSection) -> Spread:
    """What a recipe's select section says about who gets how many connections."""
    return Spread(
        section.k,
        section.coverage,
        section.neurons,
        section.keep_total,
        section.k_per,
        section.budget,
        section.tile,
    )


def share(part: int, whole: int) -> str:
    """ "0.020 %": the form in which the paper gives the trainable share."""
    return f"{100 * part / whole:.3f} %"


def check_k(targets: Mapping[str, nn.Module], k: int) -> None:
    """Raises RecipeError naming the first layer that has fewer than K inputs."""
    for name, module in targets.items():
        inputs = layer_shape(module)[1]
        if k > inputs:
            raise RecipeError(f"select.k={k}, but {name} has {inputs} inputs", fix=f"choose 1..{inputs}")


def select_indices(
    folder: Path,
    skeleton: nn.Module,
    targets: Mapping[str, nn.Module],
    k: int,
    criterion: str = "magnitude",
    seed: int = 0,
    on_layer: Callable[[LayerChoice], None] | None = None,
    quantization: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    rank: int = LIFT_RANK,
    spread: Spread | None = None,
) -> Selection:
    """The K connections of every neuron of the targets, read from the files of `folder`.

    skeleton  the module graph the targets belong to (ties and the name prefix)
    rank      of `lift`
    spread    who gets how many, where that is not K for every neuron
    seed      of `random`; every layer draws from its own stream, so neither order nor sharding matters
    on_layer  called after each layer, for progress and the table
    quantization, dtype  choose from the weights as bitsandbytes leaves them (computing in dtype), because
              those are what trains
    Raises RecipeError for K or a criterion that does not fit, ModelError for weights that are missing,
    misshapen, not finite or packed.
    """
    check_criterion(criterion)
    spread = spread or Spread(k)
    count_by_layer = connections(targets, spread, seed)
    competing = pools(spread, count_by_layer)
    weights = hub.open_weights(folder)
    stored = {name: _stored(weights, skeleton, name) for name in targets}
    indices: dict[str, Tensor] = {}
    for name in _in_file_order(weights, stored):
        check_weight(weights, stored[name], name, targets[name])
        weight_OI = neurons_as_rows(weights.tensor(stored[name]), targets[name])
        if quantization is not None:
            weight_OI = round_trip(weight_OI, quantization, dtype)
        generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
        try:
            if name in competing:
                score_OI = score(weight_OI, criterion, generator, rank)
                competing[name].add(
                    name, score_OI if spread.tile is None else tile_means(score_OI, spread.tile)
                )
                continue
            indices[name] = _chosen(weight_OI, count_by_layer[name], criterion, generator, rank)
        except ValueError as error:
            raise ModelError(f"{name}: {error}", str(weights.info(stored[name]).file)) from None
        if on_layer is not None:
            on_layer(describe(name, weight_OI, indices[name], weights.info(stored[name]).nbytes))
    for pool in dict.fromkeys(competing.values()):
        indices |= pool.indices()
    if spread.tile is not None:
        indices = as_whole_tiles(indices, spread.tile, targets)
    if competing and on_layer is not None:
        for name in indices:
            weight_OI = neurons_as_rows(weights.tensor(stored[name]), targets[name])
            on_layer(describe(name, weight_OI, indices[name], weights.info(stored[name]).nbytes))
    return as_selection(
        {name: indices[name] for name in targets if name in indices},
        label(criterion, spread),
        folder,
        skeleton,
    )


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


def as_whole_tiles(
    tiles: Mapping[str, Tensor], tile: int, targets: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """Chosen tiles as connections; layers without any are left out."""
    return {
        name: whole_tiles(found, tile, *layer_shape(targets[name]))
        for name, found in tiles.items()
        if int(found.max()) >= 0
    }


def pools(spread: Spread, count_by_layer: Mapping[str, Tensor]) -> dict[str, Pool]:
    """Layer -> the pool it competes in; empty where every neuron has its own."""
    if spread.tile is not None:
        total = sum(int(count_O.sum()) for count_O in count_by_layer.values())
        return dict.fromkeys(count_by_layer, Pool(tiles_of(total, spread.tile)))
    if spread.coverage == "neuron":
        return {}

    def group(name: str) -> object:
        if spread.coverage == "model":
            return None
        number = block_number(name)  # layers outside the blocks compete by themselves
        return name if spread.coverage == "matrix" or number is None else number

    totals: dict[object, int] = {}
    for name, count_O in count_by_layer.items():
        totals[group(name)] = totals.get(group(name), 0) + int(count_O.sum())
    by_group = {key: Pool(total) for key, total in totals.items()}
    return {name: by_group[group(name)] for name in count_by_layer}


def label(criterion: str, spread: Spread) -> str:
    """What a selection's description calls its rule: the criterion, and what is not the paper's about it."""
    parts = [criterion]
    if spread.tile is not None:
        parts.append(f"in {spread.tile} x {spread.tile} tiles")
    if spread.coverage != "neuron":
        parts.append(f"per {spread.coverage}")
    if spread.neurons < 1:
        parts.append(f"on {100 * spread.neurons:g} % of the neurons")
    return " ".join(parts)


def check_criterion(criterion: str) -> None:
    """Raises RecipeError naming the criteria there are."""
    known = [*CRITERIA, *DATA_CRITERIA]
    if criterion not in known:
        raise RecipeError(f"select.criterion={criterion} is not known", fix=f"choose {', '.join(known)}")


def as_selection(indices: dict[str, Tensor], criterion: str, folder: Path, skeleton: nn.Module) -> Selection:
    """The chosen columns with what ties them to their base."""
    return Selection(
        indices=indices,
        k=max(index_OK.shape[1] for index_OK in indices.values()),
        criterion=criterion,
        fingerprint=hub.fingerprint(folder),
        tied={name: others for name in indices if (others := sharing_modules(skeleton, name))},
    )


def check_weight(weights: hub.Weights, stored: str, name: str, module: nn.Module) -> None:
    """Raises ModelError when the stored weight of a target has not the module's shape, or a packed type (a
    quantised model).
    """
    info = weights.info(stored)
    if info.dtype not in SELECTABLE:
        raise ModelError(
            f"{stored} is stored as {str(info.dtype).removeprefix('torch.')}",
            str(info.file),
            "use the model's 16- or 32-bit original",
        )
    outputs, inputs = layer_shape(module)
    expected = (inputs, outputs) if is_conv1d(module) else (outputs, inputs)
    if info.shape != expected:
        raise ModelError(
            f"{stored} has the shape {list(info.shape)}, but {name} needs {list(expected)}", str(info.file)
        )


def neurons_as_rows(weight: Tensor, module: nn.Module) -> Tensor:
    """A stored weight as [O, I]: a view, transposed for Conv1D."""
    return weight.T if is_conv1d(module) else weight


def stored_names(weights: hub.Weights, skeleton: nn.Module, name: str) -> list[str]:
    """Every name under which the files hold a module's weight: a tied weight may be stored once or twice.

    Raises ModelError when there is none.
    """
    prefix = str(skeleton.base_model_prefix)
    modules = [name, *sharing_modules(skeleton, name)]
    found = [hub.stored_name(weights, f"{module}.weight", prefix) for module in modules]
    return list(dict.fromkeys(n for n in found if n)) or [hub.tensor_name(weights, name, prefix)]


def _stored(weights: hub.Weights, skeleton: nn.Module, name: str) -> str:
    return stored_names(weights, skeleton, name)[0]


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
