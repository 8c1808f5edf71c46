"""NaN and infinity are found, and where."""

from __future__ import annotations

import pytest
import torch
from conftest import pico_llama

from neuroada_cli.delta.finite import all_finite, broken_row, where_broken


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", [(), (5,), (5, 3), (5, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_row_with_one(value: float, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    assert all_finite(tensor)
    row = min(3, len(shape) * 3)
    tensor[(row, *(0,) * (len(shape) - 1)) if shape else ()] = value
    assert not all_finite(tensor)
    assert broken_row(tensor) == row
    assert all_finite(torch.empty(0, 3))


def test_of_a_model_the_first_parameter() -> None:
    model = pico_llama()
    assert where_broken(model) is None
    with torch.no_grad():
        model.lm_head.weight[7, 3] = torch.nan
        model.model.layers[1].mlp.up_proj.weight[5, 0] = torch.inf
    assert where_broken(model) == "model.layers.1.mlp.up_proj.weight, row 5"
