"""Rows of different length: place holders stand on columns that are not chosen, and never learn.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from itertools import combinations

import torch
from conftest import pico_llama
from torch import Tensor, nn

from neuroada_cli.delta import model as delta
from neuroada_cli.delta.index import filled, size
from neuroada_cli.delta.linear import DeltaLinear

INPUTS = 5


def all_rows() -> Tensor:
    """Every set of columns that leaves one over, as a row that ends in -1."""
    sets = [chosen for count in range(INPUTS) for chosen in combinations(range(INPUTS), count)]
    return torch.tensor([[*chosen, *[-1] * (INPUTS - len(chosen))] for chosen in sets], dtype=torch.int32)


def test_a_place_holder_stands_on_the_lowest_column_that_is_not_chosen() -> None:
    index_OK = all_rows()
    full_OK, real_OK = filled(index_OK)
    assert real_OK is not None
    for row, (columns, given) in enumerate(zip(full_OK.tolist(), index_OK.tolist(), strict=True)):
        chosen = [column for column in given if column >= 0]
        lowest = next(column for column in range(INPUTS) if column not in chosen)
        assert columns == [*chosen, *[lowest] * (INPUTS - len(chosen))], row
    assert size(index_OK) == int(real_OK.sum()) == sum(1 for row in index_OK.tolist() for c in row if c >= 0)


def test_folding_and_restoring_leave_frozen_weights_alone() -> None:
    index_OK = all_rows()
    base = nn.Linear(INPUTS, len(index_OK))
    before_OI = base.weight.detach().clone()
    layer = DeltaLinear.from_base(base, index_OK)
    with torch.no_grad():
        layer.delta.copy_((index_OK >= 0).float())
    layer.refold()
    mask_OI = torch.zeros_like(before_OI, dtype=torch.bool)
    for row, columns in enumerate(index_OK.tolist()):
        mask_OI[row, [column for column in columns if column >= 0]] = True
    assert torch.equal(layer.weight.detach(), before_OI + mask_OI.float())
    layer.restore()
    assert torch.equal(layer.weight.detach(), before_OI)


def test_place_holders_and_resting_entries_get_no_gradient_from_either_user_of_a_tied_weight() -> None:
    """The head's product and the embedding's lookup both reach the same deltas."""
    model = pico_llama(tied=True)
    generator = torch.Generator().manual_seed(2)
    index_VK = torch.rand(96, 32, generator=generator).topk(4).indices.sort(dim=1).values.to(torch.int32)
    index_VK[::3, 2:] = -1
    layer = delta.attach(model, {"lm_head": index_VK})["lm_head"]
    tokens_BS = torch.arange(90).view(3, 30)
    model(input_ids=tokens_BS, labels=tokens_BS).loss.backward()
    grad_VK = layer.delta.grad
    assert grad_VK is not None
    assert torch.equal(grad_VK == 0, index_VK < 0)
    rests_VK = torch.rand(96, 4, generator=generator) < 0.5
    layer.real = (index_VK >= 0) & ~rests_VK
    layer.delta.grad = None
    model(input_ids=tokens_BS, labels=tokens_BS).loss.backward()
    assert layer.delta.grad is not None
    torch.testing.assert_close(layer.delta.grad, grad_VK * ~rests_VK)
