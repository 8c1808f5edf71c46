"""The Triton kernel equals the oracle: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from neuroada_cli.delta.sampled_grad import dense_oracle
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
