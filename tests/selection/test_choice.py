"""What competes with what, and rows of unequal length by every criterion.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from tiny_loop import rows
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.data.batch import collate
from neuroada_cli.delta.names import block_number, split_at_block
from neuroada_cli.delta.targets import Target, find_targets
from neuroada_cli.selection.choice import Choice, target_layers
from neuroada_cli.selection.criteria import low_rank
from neuroada_cli.selection.from_files import select_from_files
from neuroada_cli.selection.from_rows import select_from_rows
from neuroada_cli.selection.spread import Spread


def best(score_OI: Tensor, count_O: list[int]) -> list[list[int]]:
    """Each row's own number of columns with the highest scores, ascending."""
    ranked = score_OI.argsort(dim=1, descending=True).tolist()
    return [sorted(row[:count]) for row, count in zip(ranked, count_O, strict=True)]


def columns(index_OK: Tensor) -> list[list[int]]:
    return [[column for column in row if column >= 0] for row in index_OK.tolist()]


@pytest.mark.parametrize(
    ("name", "block", "number"),
    [
        ("model.layers.3.mlp.up_proj", "model.layers.3", 3),
        ("model.layers.3.mlp.experts.7.w1", "model.layers.3", 3),
        ("encoder.block.11.layer.0.SelfAttention.q", "encoder.block.11", 11),
        ("lm_head", None, None),
    ],
)
def test_a_layer_belongs_to_the_first_number_in_its_name(
    name: str, block: str | None, number: int | None
) -> None:
    assert split_at_block(name)[0] == block
    assert block_number(name) == number


def test_layers_names_blocks_and_not_experts() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"experts": experts()}) for _ in range(2))})
    found = find_targets(model, ["all-linear"], layers=[1])
    assert list(found) == [f"layers.1.experts.{number}" for number in range(3)]


def experts() -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(4, 4) for _ in range(3))


def test_a_block_shares_its_connections_and_layers_outside_have_their_own() -> None:
    """Two blocks of two layers, and two layers outside, one of which has by far the largest weights."""
    shapes = {"layers.0.q": 4, "layers.0.up": 8, "layers.1.q": 4, "layers.1.up": 8, "head": 6, "score": 2}
    targets = {name: Target(nn.Linear(4, outputs, device="meta")) for name, outputs in shapes.items()}
    pools = Choice(targets, Spread(2, coverage="block")).pools()
    assert pools["layers.0.q"] is pools["layers.0.up"]
    assert len({id(pool) for pool in pools.values()}) == 4
    totals = {name: pool.total for name, pool in pools.items()}
    assert totals == {
        "layers.0.q": 24, "layers.0.up": 24, "layers.1.q": 24, "layers.1.up": 24, "head": 12, "score": 4,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for name, outputs in shapes.items():
        pools[name].add(name, torch.rand(outputs, 4, generator=generator) + 9 * (name == "head"))
    chosen = {name: index for pool in dict.fromkeys(pools.values()) for name, index in pool.indices().items()}
    assert sum(map(len, columns(chosen["score"]))) == 4
    assert sum(map(len, columns(chosen["head"]))) == 12
    for block in (0, 1):
        both = [chosen[f"layers.{block}.{kind}"] for kind in ("q", "up")]
        assert sum(len(row) for index in both for row in columns(index)) == 24


def test_lift_with_rows_of_unequal_length_goes_by_the_whole_approximation(tmp_path: Path) -> None:
    model = pico_llama()
    model.save_pretrained(tmp_path)
    base = hub.open_base(tmp_path)
    choice = Choice(target_layers(base, ["up_proj"]), Spread(2, neurons=0.5), "lift", rank=3)
    selection = select_from_files(base, choice)
    for name, index_OK in selection.indices.items():
        weight_OI = model.get_submodule(name).weight.detach()
        expected = best(low_rank(weight_OI, 3).abs(), choice.counts[name].tolist())
        assert columns(index_OK) == expected
        assert expected != best(weight_OI.abs(), choice.counts[name].tolist())


@pytest.mark.parametrize("criterion", ["gradient", "snip", "gallop", "activation"])
def test_rows_of_unequal_length_go_by_their_own_evidence(criterion: str) -> None:
    """The same columns as the neuron gets where all have as many as it has."""
    model, name = pico_llama(), "model.layers.1.mlp.up_proj"
    batches = [collate([row], 0) for row in rows(False, False)]

    def chosen(spread: Spread) -> tuple[Choice, list[list[int]]]:
        choice = Choice({name: Target(model.get_submodule(name))}, spread, criterion)
        return choice, columns(select_from_rows({}, model, choice, batches, "generation").indices[name])

    asked, found = chosen(Spread(2, neurons=0.6))
    count_O = asked.counts[name].tolist()
    assert len(set(count_O)) > 2
    alike = {count: chosen(Spread(count))[1] for count in set(count_O) - {0}}
    assert found == [alike[count][row] if count else [] for row, count in enumerate(count_O)]
