"""The Triton kernel equals the oracle: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from neuroada_cli.delta.sampled_grad import dense_oracle
from neuroada_cli.delta.triton_grad import last_transpose, split_tokens, triton_grad
from neuroada_cli.selection.criteria import choose

SHAPES = [
    (1, 1, 1, 1),
    (5, 7, 3, 2),
    (300, 65, 17, 1),
    (1100, 48, 13, 20),
    (129, 31, 12, 31),
    (257, 16, 40, 3),
]


def check_all(device: str) -> None:
    """Every shape and dtype, twice: the same bits again, and equal to the oracle."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for tokens, inputs, outputs, k in SHAPES:
            torch.manual_seed(tokens)
            grad_TO = torch.randn(tokens, outputs).to(device, dtype)
            x_TI = torch.randn(tokens, inputs).to(device, dtype)
            index_OK = choose(torch.randn(outputs, inputs), k).to(device)
            sampled_OK = triton_grad(grad_TO, x_TI, index_OK)
            expected_OK = dense_oracle(grad_TO, x_TI, index_OK)
            torch.testing.assert_close(sampled_OK, expected_OK, rtol=1e-3, atol=1e-3)
            assert torch.equal(triton_grad(grad_TO, x_TI, index_OK), sampled_OK)
            wide_TO = torch.randn(tokens, 2 * outputs).to(device, dtype)[:, ::2]
            expected_OK = dense_oracle(wide_TO, x_TI, index_OK)
            torch.testing.assert_close(
                triton_grad(wide_TO, x_TI, index_OK), expected_OK, rtol=1e-3, atol=1e-3
            )


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


def test_the_parts_cover_all_tokens_and_no_more_than_needed() -> None:
    for tokens in (1, 255, 256, 257, 1000, 8192, 100_000):
        for outputs in (1, 64, 4096, 32_000):
            parts, steps = split_tokens(tokens, outputs)
            assert parts * steps * 256 >= tokens
            assert (parts - 1) * steps * 256 < tokens


def test_the_shared_transpose_is_never_stale() -> None:
    x_TI = torch.randn(6, 4)
    first = last_transpose(x_TI)
    assert last_transpose(x_TI) is first
    assert last_transpose(x_TI.clone()) is not first
    again = last_transpose(x_TI)
    x_TI.mul_(2)  # same memory, other values
    assert torch.equal(last_transpose(x_TI), x_TI.T)
    assert last_transpose(x_TI) is not again
    last_transpose.clear()
    assert last_transpose.x_TI is None
