"""Rows of different length: who gets how many connections, and that place holders never train.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from neuroada_cli.delta.index import filled, size
from neuroada_cli.delta.linear import DeltaLinear
from neuroada_cli.methods.mask import Mask
from neuroada_cli.methods.neuroada import NeuroAda
from neuroada_cli.selection.criteria import choose
from neuroada_cli.selection.spread import (
    Pool,
    Spread,
    by_counts,
    counts,
    sum_of_first,
    tile_means,
    tile_sizes,
    whole_tiles,
)

SHAPES = {"blocks.0.q": (12, 8), "blocks.0.up": (20, 8), "blocks.1.q": (12, 8)}


def test_the_papers_spread_is_k_per_neuron() -> None:
    assert all(
        torch.equal(c, torch.full((SHAPES[n][0],), 3)) for n, c in counts(Spread(3), SHAPES, 0).items()
    )


def test_a_part_of_the_neurons_keeps_or_gives_up_the_others_connections() -> None:
    kept, given_up = (counts(Spread(2, neurons=0.5, keep_total=keep), SHAPES, 0) for keep in (True, False))
    for name, (outputs, _) in SHAPES.items():
        assert int((kept[name] > 0).sum()) == int((given_up[name] > 0).sum()) == outputs // 2
        assert int(kept[name].sum()) == 2 * outputs
        assert int(given_up[name].sum()) == outputs


def test_the_last_matching_pattern_gives_k() -> None:
    found = counts(Spread(1, k_per={"*": 2, "up": 5, "blocks.1.*": 0}), SHAPES, 0)
    assert {name: int(count_O[0]) for name, count_O in found.items()} == {
        "blocks.0.q": 2,
        "blocks.0.up": 5,
        "blocks.1.q": 0,
    }


@pytest.mark.parametrize("budget", [1, 7, 44, 45, 100, 351])
def test_a_budget_is_spent_to_the_last_connection_and_evenly(budget: int) -> None:
    found = torch.cat(list(counts(Spread(budget=budget), SHAPES, 0).values()))
    assert int(found.sum()) == budget
    assert int(found.max() - found.min()) <= 1


@pytest.mark.parametrize(
    ("spread", "message"),
    [
        (Spread(9), "blocks.0.q has 8 inputs"),
        (Spread(1, k_per={"gate": 2}), "k_per.gate matches no adapted layer"),
        (Spread(1, k_per={"*": 0}), "no neuron gets a connection"),
        (Spread(5, neurons=0.5), "has 8 inputs"),
    ],
)
def test_what_cannot_be_is_refused(spread: Spread, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counts(spread, SHAPES, 0)


def test_a_pool_takes_the_highest_scores_of_all_its_layers() -> None:
    torch.manual_seed(0)
    scores = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    pool = Pool(50)
    for name, score_OI in scores.items():
        pool.add(name, score_OI)
    found = pool.indices()
    everything = torch.cat([score_OI.view(-1) for score_OI in scores.values()])
    threshold = everything.sort(descending=True).values[49]
    for name, score_OI in scores.items():
        chosen_OI = torch.zeros_like(score_OI, dtype=torch.bool)
        for row, columns in enumerate(found[name].tolist()):
            kept = [column for column in columns if column >= 0]
            assert kept == sorted(set(kept))
            assert columns[len(kept) :] == [-1] * (len(columns) - len(kept))
            chosen_OI[row, kept] = True
        assert torch.equal(chosen_OI, score_OI >= threshold)


@pytest.mark.parametrize("levels", [1, 4, 30])
def test_of_equal_scores_the_first_ones_whatever_comes_first_and_each_total_within_the_next(
    levels: int,
) -> None:
    """Weights of 16 bits have many equals, and gradients of what no row reaches are all zero."""
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.randint(levels, shape, generator=generator).bfloat16() for n, shape in SHAPES.items()}
    everything = torch.cat([score_OI.flatten() for score_OI in scores.values()])
    order_N = everything.float().argsort(descending=True, stable=True)
    sizes = [score_OI.numel() for score_OI in scores.values()]
    for total in (1, 7, 40, 41, len(everything) - 1):
        expected_N = torch.zeros(len(everything), dtype=torch.bool)
        expected_N[order_N[:total]] = True
        parts = dict(zip(scores, expected_N.split(sizes), strict=True))
        for names in (list(scores), list(scores)[::-1]):
            pool = Pool(total, scores)
            for name in names:
                pool.add(name, scores[name])
            for name, index_OK in pool.indices().items():
                chosen_OI = torch.zeros(scores[name].shape, dtype=torch.bool)
                for row, columns in enumerate(index_OK.tolist()):
                    chosen_OI[row, [column for column in columns if column >= 0]] = True
                assert torch.equal(chosen_OI.flatten(), parts[name])


def ragged() -> torch.Tensor:
    count_O = torch.tensor([0, 3, 1, 8, 2, 0])
    weight_OI = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    return by_counts(count_O, lambda rows_O, k: choose(weight_OI[rows_O], k))


def test_place_holders_are_columns_that_are_not_chosen() -> None:
    index_OK = ragged()
    full_OK, real_OK = filled(index_OK)
    assert real_OK is not None
    assert size(index_OK) == 14
    for row in range(6):
        chosen = set(index_OK[row][real_OK[row]].tolist())
        assert not chosen & set(full_OK[row][~real_OK[row]].tolist())
    assert filled(index_OK[3:4])[1] is None


@pytest.mark.parametrize("method", [NeuroAda, Mask])
def test_ragged_rows_train_like_the_dense_gradient_at_their_positions(method: type) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    before_OI = model[0].weight.detach().clone()
    x_TI = torch.randn(5, 8)
    model(x_TI).square().sum().backward()
    grad_OI = model[0].weight.grad.clone()
    model.zero_grad()
    index_OK = ragged()
    trained = method()
    trained.attach(model, {"0": index_OK})
    optimizer = torch.optim.SGD(trained.parameters(model), lr=0.1)
    model(x_TI).square().sum().backward()
    trained.before_step(model)
    optimizer.step()
    trained.after_step(model)
    mask_OI = torch.zeros(6, 8, dtype=torch.bool)
    for row, columns in enumerate(index_OK.tolist()):
        mask_OI[row, [column for column in columns if column >= 0]] = True
    torch.testing.assert_close(model[0].weight.detach(), before_OI - 0.1 * grad_OI * mask_OI)
    assert torch.equal(model[0].weight.detach()[~mask_OI], before_OI[~mask_OI])
    state = trained.state(model)
    assert torch.equal(state.deltas["0"] != 0, index_OK >= 0)


def test_a_fresh_ragged_layer_gives_the_base_outputs() -> None:
    base = nn.Linear(8, 6)
    x = torch.randn(4, 8)
    wanted = base(x)
    assert torch.equal(DeltaLinear.from_base(base, ragged())(x), wanted)


@pytest.mark.parametrize(("outputs", "inputs"), [(8, 12), (7, 10)])
def test_tiles_are_whole_and_those_with_the_highest_mean(outputs: int, inputs: int) -> None:
    tile, wanted = 4, 3
    score_OI = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(2))
    parts = {
        (row, column): score_OI[row : row + tile, column : column + tile]
        for row in range(0, outputs, tile)
        for column in range(0, inputs, tile)
    }
    best = sorted(parts, key=lambda place: -float(parts[place].mean()))[:wanted]
    mask_OI = torch.zeros(outputs, inputs, dtype=torch.bool)
    for row, column in best:
        mask_OI[row : row + tile, column : column + tile] = True
    pool = Pool(wanted)
    pool.add("layer", tile_means(score_OI, tile))
    index_OK = whole_tiles(pool.indices()["layer"], tile, outputs, inputs)
    found_OI = torch.zeros(outputs, inputs, dtype=torch.bool)
    for row, columns in enumerate(index_OK.tolist()):
        kept = [column for column in columns if column >= 0]
        assert columns == sorted(kept) + [-1] * (len(columns) - len(kept))
        found_OI[row, kept] = True
    assert torch.equal(found_OI, mask_OI)
    assert index_OK.shape[1] == int(mask_OI.sum(dim=1).max()), "as wide as the longest row, and no wider"


@pytest.mark.parametrize("shapes", [[(8, 12)], [(7, 10)], [(3, 2)], [(7, 10), (4, 4), (9, 3)]])
@pytest.mark.parametrize("wanted", [1, 2, 4, 99])
def test_the_most_and_the_fewest_that_tiles_can_hold(shapes: list[tuple[int, int]], wanted: int) -> None:
    tile, sizes = 4, Counter()
    every = []
    for outputs, inputs in shapes:
        sizes += tile_sizes(outputs, inputs, tile)
        parts = tile_means(torch.ones(outputs, inputs), tile)
        for row in range(parts.shape[0]):
            for column in range(parts.shape[1]):
                here = slice(row * tile, (row + 1) * tile), slice(column * tile, (column + 1) * tile)
                every.append(torch.ones(outputs, inputs)[here].numel())
    assert sorted(sizes.elements()) == sorted(every)
    assert sum_of_first(sizes, wanted, largest=True) == sum(sorted(every, reverse=True)[:wanted])
    assert sum_of_first(sizes, wanted, largest=False) == sum(sorted(every)[:wanted])
