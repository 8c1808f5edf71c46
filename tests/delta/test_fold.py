"""round(W + delta): the sum in fp32, rounded once."""

from __future__ import annotations

import pytest
import torch

from neuroada_cli.delta.fold import fold_entries


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_sum_is_rounded_once(dtype: torch.dtype) -> None:
    """Deltas of about half a step of the type: rounded before they are added, or added in it, they differ."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1000, generator=generator).to(dtype)
    delta = torch.randn(1000, generator=generator) * base.float().abs() * torch.finfo(dtype).eps
    found = fold_entries(base, delta, dtype)
    exact = base.double() + delta.double()
    assert found.dtype == dtype
    if dtype == torch.float32:
        assert torch.equal(found, base + delta)
    else:
        assert torch.equal(found, exact.float().to(dtype))
        assert 200 < int((found != base).sum()) < 900
    assert torch.equal(fold_entries(base, torch.zeros(1000), dtype), base)


def test_a_double_base_is_summed_in_double() -> None:
    base = torch.tensor([1.0], dtype=torch.float64)
    assert fold_entries(base, torch.tensor([1e-12]), torch.float64).item() == 1.0 + float(torch.tensor(1e-12))
