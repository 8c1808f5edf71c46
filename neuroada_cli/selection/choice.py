"""What a recipe chooses: which layers, and how many connections of each neuron. Worked out once.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuroada_cli import hub
from neuroada_cli.delta.names import split_at_block
from neuroada_cli.delta.targets import Target, find_targets, parameter_name, shapes_of, targets_of
from neuroada_cli.errors import RecipeError
from neuroada_cli.selection.criteria import CRITERIA, DATA_CRITERIA, LIFT_RANK, score
from neuroada_cli.selection.spread import Pool, Spread, counts, sum_of_first, tile_means, tile_sizes, tiles_of

if TYPE_CHECKING:  # so that benchmarks that choose without a recipe need no pydantic
    from neuroada_cli.recipe.schema import SelectSection


@dataclass(frozen=True)
class Choice:
    """What is to be chosen, for everybody who has to know: choosing itself, plan, space, dry run, validate.

    targets    name -> the layer, on the meta device or loaded
    spread     who gets how many connections
    criterion  by what they are chosen;  rank  of `lift`
    seed       of what is drawn at random
    """

    targets: Mapping[str, Target]
    spread: Spread = field(default_factory=Spread)
    criterion: str = "magnitude"
    rank: int = LIFT_RANK
    seed: int = 0

    def check(self) -> None:
        """Raises RecipeError for a criterion that there is not, and for what does not fit the layers."""
        check_criterion(self.criterion)
        _ = self.counts

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Layer -> (O, I)."""
        return shapes_of(self.targets)

    @cached_property
    def counts(self) -> dict[str, Tensor]:
        """Layer -> connections per neuron [O]. Raises RecipeError for what does not fit the layers."""
        if self.spread.plain:
            check_k(self.shapes, self.spread.k)
        try:
            return counts(self.spread, self.shapes, self.seed)
        except ValueError as error:
            raise RecipeError(str(error), "select") from None

    @property
    def connections(self) -> int:
        """How many are chosen in all: K x (rows of all targets), where every neuron gets K. The most that
        it can be where tiles at the edges are smaller: which ones win is known only once weights were read.
        """
        return self._most_and_fewest[0]

    @property
    def fewest(self) -> int:
        """As `connections`, the fewest that it can be: less only where tiles at the edges are smaller."""
        return self._most_and_fewest[1]

    @cached_property
    def _most_and_fewest(self) -> tuple[int, int]:
        total, tile = sum(int(count_O.sum()) for count_O in self.counts.values()), self.spread.tile
        if tile is None:
            return total, total
        sizes: Counter[int] = Counter()
        for target in self.targets.values():
            layout = target.layout
            for size, count in tile_sizes(layout.outputs, layout.inputs, tile).items():
                sizes[size] += count * (layout.experts or 1)
        most, fewest = (sum_of_first(sizes, tiles_of(total, tile), largest) for largest in (True, False))
        return most, fewest

    @property
    def competes(self) -> bool:
        """Whether weights compete across neurons, so that rows will differ as the weights do."""
        return self.spread.tile is not None or self.spread.coverage != "neuron"

    @property
    def stored_k(self) -> dict[str, int] | None:
        """Layer -> columns of its index: as many as its longest row has. None where only weights tell."""
        if self.competes:
            return None
        return {name: max(1, int(count_O.max())) for name, count_O in self.counts.items()}

    @property
    def label(self) -> str:
        """What a selection says of its rule: the criterion, and what is not the paper's about it."""
        parts, spread = [self.criterion], self.spread
        if spread.tile is not None:
            parts.append(f"in {spread.tile} x {spread.tile} tiles")
        if spread.coverage != "neuron":
            parts.append(f"per {spread.coverage}")
        if spread.neurons < 1:
            parts.append(f"on {100 * spread.neurons:g} % of the neurons")
        return " ".join(parts)

    def scored(self, weight_OI: Tensor, generator: torch.Generator) -> Tensor:
        """What a matrix' weights, or its tiles, compete with."""
        score_OI = score(weight_OI, self.criterion, generator, self.rank)
        return score_OI if self.spread.tile is None else tile_means(score_OI, self.spread.tile)

    def pools(self) -> dict[str, Pool]:
        """Layer -> the new, empty pool it competes in; empty where every neuron has its own connections."""
        if not self.competes:
            return {}
        sums = {name: int(count_O.sum()) for name, count_O in self.counts.items()}
        if self.spread.tile is not None:
            return dict.fromkeys(sums, Pool(tiles_of(sum(sums.values()), self.spread.tile), sums))
        totals: dict[object, int] = {}
        for name, count in sums.items():
            totals[self._group(name)] = totals.get(self._group(name), 0) + count
        by_group = {key: Pool(total, sums) for key, total in totals.items()}
        return {name: by_group[self._group(name)] for name in sums}

    def _group(self, name: str) -> object:
        """What competes with a layer; layers outside the blocks compete by themselves."""
        if self.spread.coverage == "model":
            return None
        block, _ = split_at_block(name)  # an encoder and a decoder both have a block 0
        return name if self.spread.coverage == "matrix" or block is None else block


def choice_of(section: SelectSection, base: hub.Base, seed: int) -> Choice:
    """What a recipe's select section says about this base. Raises RecipeError for what matches nothing."""
    targets = target_layers(base, section.targets, section.exclude, section.layers)
    return Choice(targets, Spread.of(section), section.criterion, section.lift_rank, seed)


def target_layers(
    base: hub.Base,
    include: Sequence[str] = ("all-linear",),
    exclude: Sequence[str] = (),
    layers: Sequence[int] | None = None,
) -> dict[str, Target]:
    """Name -> layer (on the meta device) that the recipe's select section means.

    `all-linear` leaves out the output head, classification heads, a pooler that the files lack, and of a
    model that looks at pictures what is not language.
    Raises RecipeError for an entry that matches nothing.
    """
    parts = hub.parts_of(base.graph)
    heads = hub.left_out(base.graph, parts)
    heads += [
        name
        for name in targets_of(base.graph)
        if hub.is_pooler(name) and not base.places.names(parameter_name(base.graph, name))
    ]
    try:
        return find_targets(base.graph, include, exclude, layers, heads, parts)
    except ValueError as error:
        raise RecipeError(str(error), "select") from None


def check_k(shapes: Mapping[str, tuple[int, int]], k: int) -> None:
    """Raises RecipeError naming the first layer that has fewer than K inputs."""
    for name, (_, inputs) in shapes.items():
        if k > inputs:
            raise RecipeError(f"select.k={k}, but {name} has {inputs} inputs", fix=f"choose 1..{inputs}")


def check_criterion(criterion: str) -> None:
    """Raises RecipeError naming the criteria there are."""
    known = [*CRITERIA, *DATA_CRITERIA]
    if criterion not in known:
        raise RecipeError(f"select.criterion={criterion} is not known", fix=f"choose {', '.join(known)}")
