"""How many connections every neuron gets, and rows of different length in one index.

O = output neurons, I = inputs, K = chosen inputs per neuron (here: of the longest row)

The paper gives every neuron of every layer the same K; its ablations give only a part of the neurons any,
or draw the same number from a whole matrix, block or model. Rows then differ: a shorter one ends in -1.
"""

from __future__ import annotations

import fnmatch
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Coverage = Literal["neuron", "matrix", "block", "model"]


@dataclass(frozen=True)
class Spread:
    """Who gets how many connections.

    k          per neuron
    coverage   what competes for them: the inputs of a neuron (the paper), or all weights of a matrix, of a
               block, of the model, where the total stays what it is per neuron
    neurons    share of each layer's neurons, drawn at random, that get any
    keep_total True: those get the others' connections, too (K / neurons each)
    k_per      pattern of layer names -> K there; of several matching patterns the last one counts
    budget     connections in all, instead of k: every neuron gets the same, give or take one
    tile       train whole tiles of so many rows and columns, those with the highest mean score in the model,
               as many as the total has room for (SMT, arXiv:2405.15525: 256)
    """

    k: int = 1
    coverage: Coverage = "neuron"
    neurons: float = 1.0
    keep_total: bool = True
    k_per: Mapping[str, int] = field(default_factory=dict)
    budget: int | None = None
    tile: int | None = None

    @classmethod
    def of(cls, section: object) -> Spread:
        """What a recipe's select section says about it: the settings have the same names there."""
        return cls(**{each.name: getattr(section, each.name) for each in fields(cls)})

    @property
    def plain(self) -> bool:
        """Whether it is the paper's: K connections of every neuron."""
        return self == Spread(self.k)


def counts(spread: Spread, shapes: Mapping[str, tuple[int, int]], seed: int) -> dict[str, Tensor]:
    """Layer -> connections per neuron, int64 [O]; with another coverage only the sums matter.

    shapes  layer -> (O, I)
    Raises ValueError naming a layer with too few inputs, or a pattern that matches none.
    """
    for pattern in spread.k_per:
        if not any(_matches(pattern, name) for name in shapes):
            raise ValueError(f"k_per.{pattern} matches no adapted layer")
    found = _of_budget(spread.budget, shapes) if spread.budget is not None else _of_k(spread, shapes, seed)
    if not any(int(count_O.sum()) for count_O in found.values()):
        raise ValueError("no neuron gets a connection")
    for name, count_O in found.items():
        outputs, inputs = shapes[name]
        most = int(count_O.max())
        if most > inputs and (spread.coverage == "neuron" or int(count_O.sum()) > outputs * inputs):
            raise ValueError(f"k={most}, but {name} has {inputs} inputs; choose 1..{inputs}")
    return found


def _matches(pattern: str, name: str) -> bool:
    return pattern in (name, name.rpartition(".")[2]) or fnmatch.fnmatchcase(name, pattern)


def _of_k(spread: Spread, shapes: Mapping[str, tuple[int, int]], seed: int) -> dict[str, Tensor]:
    found = {}
    for name, (outputs, _) in shapes.items():
        k = spread.k
        for pattern, value in spread.k_per.items():
            k = value if _matches(pattern, name) else k
        count_O = torch.full((outputs,), k)
        if spread.neurons < 1:
            adapted = max(1, round(spread.neurons * outputs))
            total = k * outputs if spread.keep_total else k * adapted
            generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()) ^ 1)
            row_A = torch.randperm(outputs, generator=generator)[:adapted]
            count_O.zero_()
            count_O[row_A] = _evenly(total, adapted)
        found[name] = count_O
    return found


def _of_budget(budget: int, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    rows = [outputs for outputs, _ in shapes.values()]
    return dict(zip(shapes, torch.split(_evenly(budget, sum(rows)), rows), strict=True))


def _evenly(total: int, parts: int) -> Tensor:
    """`total` over `parts` whole numbers that differ by one at most, the larger ones evenly spaced."""
    edge = torch.arange(parts + 1) * total // parts
    return edge.diff()


def by_counts(count_O: Tensor, choose_rows: Callable[[Tensor, int], Tensor]) -> Tensor:
    """int32 [O, K]: every row its own number of columns, then -1.

    choose_rows  (bool [O], k) -> int32 [rows that are True, k], ascending
    """
    index_OK = torch.full((len(count_O), max(1, int(count_O.max()))), -1, dtype=torch.int32)
    for k in sorted(set(count_O.tolist())):
        if k:
            chosen_O = count_O == k
            index_OK[chosen_O, :k] = choose_rows(chosen_O, k).cpu()
    return index_OK


class Pool:
    """The highest scores over several layers that compete for one total, matrix by matrix. Of equal scores
    the one in the earlier layer is taken, and within a matrix the one in the upper row, then further left:
    so it does not matter in which order layers come, and what a total takes a larger one takes, too.

    names  the layers from the first to the last; those that are not named follow as they come
    Never more than `total` candidates stand in memory beside one matrix' scores.
    """

    def __init__(self, total: int, names: Iterable[str] = ()) -> None:
        self.total = total
        self._rank = {name: rank for rank, name in enumerate(names)}
        self._names: list[str] = []
        self._shapes: list[tuple[int, int]] = []
        # the candidates, those of earlier layers first
        self._score_N = torch.empty(0)
        self._matrix_N = torch.empty(0, dtype=torch.int32)
        self._place_N = torch.empty(0, dtype=torch.int64)

    def add(self, name: str, score_OI: Tensor) -> None:
        """The next matrix of a layer. Raises ValueError where a score is NaN or infinite."""
        if not torch.isfinite(score_OI).all():
            raise ValueError("a score is NaN or infinite")
        score_N = score_OI.reshape(-1).float()
        place_N = _highest(score_N, self.total)
        rank = self._rank.setdefault(name, len(self._rank))
        earlier = torch.tensor([self._rank[other] <= rank for other in self._names], dtype=torch.bool)
        at = int(earlier[self._matrix_N].sum())
        matrix_N = torch.full((len(place_N),), len(self._names), dtype=torch.int32)
        self._names.append(name)
        self._shapes.append((score_OI.shape[0], score_OI.shape[1]))
        joined_N = torch.cat([self._score_N[:at], score_N[place_N].cpu(), self._score_N[at:]])
        kept = _highest(joined_N, self.total)
        self._score_N = joined_N[kept]
        self._matrix_N = torch.cat([self._matrix_N[:at], matrix_N, self._matrix_N[at:]])[kept]
        self._place_N = torch.cat([self._place_N[:at], place_N.cpu(), self._place_N[at:]])[kept]

    def matrices(self) -> dict[str, list[Tensor]]:
        """Layer -> of each of its matrices int32 [O, K], K of the longest row; one that won nothing has an
        empty column.
        """
        found: dict[str, list[Tensor]] = {}
        for number, (name, (outputs, inputs)) in enumerate(zip(self._names, self._shapes, strict=True)):
            place_N = self._place_N[self._matrix_N == number]  # ascending
            row_N, column_N = place_N // inputs, place_N % inputs
            count_O = torch.bincount(row_N, minlength=outputs)
            start_O = count_O.cumsum(0) - count_O
            index_OK = torch.full((outputs, max(1, int(count_O.max()))), -1, dtype=torch.int32)
            index_OK[row_N, torch.arange(len(row_N)) - start_O[row_N]] = column_N.to(torch.int32)
            found.setdefault(name, []).append(index_OK)
        return found

    def indices(self) -> dict[str, Tensor]:
        """Layer -> int32 [O, K], K of the longest row; a layer that won nothing has one empty column."""
        return {name: joined(matrices) for name, matrices in self.matrices().items()}


def _highest(score_N: Tensor, count: int) -> Tensor:
    """Places of the highest scores, ascending; of equal scores the lower places."""
    if count >= len(score_N):
        return torch.arange(len(score_N), device=score_N.device)
    lowest = score_N.topk(count, sorted=False).values.min()
    kept_N = score_N > lowest
    equal_N = (score_N == lowest).nonzero()[:, 0]
    kept_N[equal_N[: count - int(kept_N.sum())]] = True
    return kept_N.nonzero()[:, 0]


def joined(indices: Sequence[Tensor]) -> Tensor:
    """Neurons of several matrices below each other: int32 [O, K], K of the longest row."""
    longest = max(index_OK.shape[1] for index_OK in indices)
    wide = [F.pad(index_OK, (0, longest - index_OK.shape[1]), value=-1) for index_OK in indices]
    return wide[0] if len(wide) == 1 else torch.cat(wide)


def tiles_of(total: int, tile: int) -> int:
    """How many tiles a number of connections has room for; one at least."""
    return max(1, total // tile**2)


def tile_sizes(outputs: int, inputs: int, tile: int) -> Counter[int]:
    """Weights of a tile -> how many tiles of a matrix have so many; those at the edges may have fewer."""

    def edges(length: int) -> Counter[int]:
        return +Counter({tile: length // tile, length % tile: int(length % tile > 0)})

    found: Counter[int] = Counter()
    for rows, below in edges(outputs).items():
        for columns, beside in edges(inputs).items():
            found[rows * columns] += below * beside
    return found


def sum_of_first(sizes: Counter[int], count: int, largest: bool) -> int:
    """What the `count` largest, or smallest, tiles hold together."""
    held = 0
    for size in sorted(sizes, reverse=largest):
        taken = min(count, sizes[size])
        held, count = held + taken * size, count - taken
    return held


def tile_means(score_OI: Tensor, tile: int) -> Tensor:
    """Mean score of every tile x tile part; those at the edges may be smaller."""
    outputs, inputs = score_OI.shape
    sums = F.pad(score_OI.float(), (0, -inputs % tile, 0, -outputs % tile))
    sums = sums.view(-(-outputs // tile), tile, -(-inputs // tile), tile).sum(dim=(1, 3))
    rows = torch.full((sums.shape[0], 1), float(tile), device=sums.device)
    columns = torch.full((1, sums.shape[1]), float(tile), device=sums.device)
    rows[-1, 0] -= -outputs % tile
    columns[0, -1] -= -inputs % tile
    return sums / (rows * columns)


def whole_tiles(tiles: Tensor, tile: int, outputs: int, inputs: int) -> Tensor:
    """int32 [O, K]: all columns of the chosen tiles, for every row of them; K of the longest row.

    tiles  int [tile rows, …], ascending numbers of tile columns, then -1
    """
    column_OK = (tiles[..., None] * tile + torch.arange(tile)).flatten(1)
    none = (tiles < 0)[..., None].expand(-1, -1, tile).flatten(1) | (column_OK >= inputs)
    longest = max(1, int((~none).sum(dim=1).max()))  # the last tile of a row can be cut: no longer than that
    column_OK = column_OK.masked_fill(none, -1)[:, :longest].repeat_interleave(tile, dim=0)[:outputs]
    return column_OK.to(torch.int32)  # only the last tile of a row can be cut, so -1 stays at the end
