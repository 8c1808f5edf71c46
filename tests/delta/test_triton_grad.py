"""The Triton kernel equals the oracle: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import collections
import importlib.util
import os
import statistics
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from neuroada_cli.delta.sampled_grad import dense_oracle
from neuroada_cli.delta.triton_buckets import (
    BANKS,
    BLOCK_O,
    TOGETHER,
    KeptBuckets,
    bucketed,
    fits,
    triton_buckets,
)
from neuroada_cli.delta.triton_grad import (
    TILE_T,
    LastTranspose,
    Tile,
    last_transpose,
    split,
    transposed,
    triton_grad,
    triton_rows,
)
from neuroada_cli.selection.criteria import choose

# T, I, O, K
SHAPES = {
    torch.float32: [(300, 65, 17, 1)],
    torch.float16: [(5, 7, 3, 2)],
    torch.bfloat16: [(1, 1, 1, 1), (520, 48, 13, 6)],
}
BUCKET_SHAPES = [  # with how many connections in a program
    (torch.bfloat16, (9, 70, 17, 5), 64),
    (torch.float16, (5, 130, 2100, 3), 8192),
]
ROW_SHAPES = [(1, 1, 1, 1), (9, 70, 17, 1), (4, 33, 5, 6)]


def problem(tokens: int, inputs: int, outputs: int, k: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    torch.manual_seed(tokens)
    grad_TO = torch.randn(tokens, 2 * outputs).to(device, dtype)[:, ::2]  # as a slice of a fused product is
    x_TI = torch.randn(tokens, inputs).to(device, dtype)
    return [grad_TO, x_TI, choose(torch.randn(outputs, inputs), k).to(device)]


def check_all(device: str) -> None:
    """Every way, shape and dtype equals the oracle, and gives the same bits again."""
    for dtype, shapes in SHAPES.items():
        for shape in shapes:
            given = problem(*shape, dtype, device)
            sampled_OK = triton_grad(*given)
            torch.testing.assert_close(sampled_OK, dense_oracle(*given), rtol=1e-3, atol=1e-3)
            assert torch.equal(triton_grad(*given), sampled_OK)
    for shape in ROW_SHAPES:
        given = problem(*shape, torch.bfloat16, device)
        sampled_OK = triton_rows(*given)
        torch.testing.assert_close(sampled_OK, dense_oracle(*given), rtol=1e-3, atol=1e-3)
        assert torch.equal(triton_rows(*given), sampled_OK)
    for dtype, shape, slots in BUCKET_SHAPES:
        given = problem(*shape, dtype, device)
        buckets = bucketed(given[2], shape[1], slots)
        sampled_OK = triton_buckets(*given, buckets)
        torch.testing.assert_close(sampled_OK, dense_oracle(*given), rtol=1e-3, atol=1e-3)
        assert torch.equal(triton_buckets(*given, buckets), sampled_OK)
    x_TI = given[1]
    x_IT = transposed(x_TI)
    assert torch.equal(x_IT[:, : len(x_TI)], x_TI.T)
    assert x_IT.shape[1] == TILE_T
    assert not x_IT[:, len(x_TI) :].any()
    sampled_OK = triton_grad(*given, Tile(neurons=4), x_IT)
    torch.testing.assert_close(sampled_OK, dense_oracle(*given), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_equal_to_the_oracle_in_the_interpreter() -> None:
    script = "from tests.delta.test_triton_grad import check_all; check_all('cpu'); print('all equal')"
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "all equal", done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_equal_to_the_oracle_on_a_gpu() -> None:
    check_all("cuda")


def test_the_parts_cover_all_tokens_and_leave_few_places_empty() -> None:
    for blocks in (1, 2, 16, 17, 2048):
        for others in (1, 3, 512, 1376, 8016):
            for slots in (132, 792):
                parts, steps = split(blocks, others, slots)
                assert (parts - 1) * steps < blocks <= parts * steps
    parts, steps = split(16, 512, 792)  # LLaMA-7B's square layers at T = 8192 on an H100
    rounds = -(-parts * 512 // 792)
    assert 16 * 512 / (rounds * 792 * steps) > 0.85


@pytest.mark.parametrize(("inputs", "outputs", "k"), [(70, 17, 5), (576, 2100, 7), (300, 40, 300)])
def test_every_connection_is_in_one_bucket_and_within_its_tile(inputs: int, outputs: int, k: int) -> None:
    torch.manual_seed(0)
    index_OK = choose(torch.randn(outputs, inputs), k)
    for slots in (64, 8192):
        buckets = bucketed(index_OK, inputs, slots)
        slot_BN = buckets.slot_BN.long()
        at, place = (slot_BN >= 0).nonzero(as_tuple=True)
        slot_E, first_E2 = slot_BN[at, place], buckets.first_B2.long()[at]
        assert not (buckets.first_B2 % BANKS).any()
        input_E = first_E2[:, 1] + slot_E % buckets.block_i
        neuron_E = first_E2[:, 0] + slot_E // buckets.block_i % BLOCK_O
        k_E = slot_E // buckets.block_i // BLOCK_O
        assert len(torch.unique(neuron_E * k + k_E)) == len(slot_E) == outputs * k
        assert torch.equal(index_OK[neuron_E, k_E].long(), input_E)


def test_lanes_that_look_up_at_once_mostly_find_different_banks() -> None:
    torch.manual_seed(0)
    buckets = bucketed(choose(torch.randn(1024, 1024), 16), 1024)
    slot_LN = buckets.slot_BN.long().view(-1, BANKS, TOGETHER).transpose(1, 2).reshape(-1, BANKS)
    full_LN = slot_LN[(slot_LN >= 0).all(dim=1)]

    def turns(word_LN: torch.Tensor) -> float:
        """Most different words of any bank, in the mean over all look-ups."""
        most = [max(collections.Counter(w % BANKS for w in set(row)).values()) for row in word_LN.tolist()]
        return statistics.mean(most)

    assert turns(full_LN // buckets.block_i % BLOCK_O) < 1.3
    assert turns(full_LN % buckets.block_i) < 2.5
    shuffled = full_LN.flatten()[torch.randperm(full_LN.numel())].view(-1, BANKS)
    assert turns(shuffled % buckets.block_i) > 2.8


def test_buckets_of_an_index_that_changed_are_made_anew() -> None:
    kept, index_OK = KeptBuckets(), choose(torch.randn(20, 30), 4)
    first = kept(index_OK, 30)
    assert kept(index_OK, 30) is first
    assert kept(index_OK.clone(), 30) is not first
    index_OK.copy_(choose(torch.randn(20, 30), 4))
    assert torch.equal(kept(index_OK, 30).slot_BN, bucketed(index_OK, 30).slot_BN)


def test_a_slot_has_bits_for_k_or_another_way_is_taken() -> None:
    assert fits(20, 4096, torch.bfloat16)
    assert fits(511, 4096, torch.float16)
    assert not fits(1 << 15, 1 << 16, torch.bfloat16)
    assert not fits(4, 4096, torch.bfloat16)
    assert not fits(20, 4096, torch.float32)


def test_the_shared_transpose_is_never_stale() -> None:
    kept = LastTranspose(lambda x_TI: x_TI.T.contiguous())
    x_TI = torch.randn(6, 4)
    first = kept(x_TI)
    assert kept(x_TI) is first
    assert kept(x_TI.clone()) is not first
    again = kept(x_TI)
    x_TI.mul_(2)  # same memory, other values
    assert torch.equal(kept(x_TI), x_TI.T)
    assert kept(x_TI) is not again
    kept.clear()
    assert kept.x_TI is None
    assert last_transpose.x_TI is None
