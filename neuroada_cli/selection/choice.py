"""What a recipe chooses: which layers, how many connections of each neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.delta.layout import layer_shape
from neuroada_cli.delta.model import block_number, find_targets
from neuroada_cli.errors import RecipeError
from neuroada_cli.recipe.schema import SelectSection
from neuroada_cli.selection.criteria import CRITERIA, DATA_CRITERIA
from neuroada_cli.selection.spread import Pool, Spread, counts, tiles_of


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


def check_k(targets: Mapping[str, nn.Module], k: int) -> None:
    """Raises RecipeError naming the first layer that has fewer than K inputs."""
    for name, module in targets.items():
        inputs = layer_shape(module)[1]
        if k > inputs:
            raise RecipeError(f"select.k={k}, but {name} has {inputs} inputs", fix=f"choose 1..{inputs}")


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
