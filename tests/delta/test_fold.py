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


def test_a_wide_base_is_not_rounded_before_the_sum() -> None:
    """1.003 + 0.001 is nearer to bf16's next number above 1; 1.003 alone is nearer to 1."""
    found = fold_entries(torch.tensor([1.003]), torch.tensor([0.001]), torch.bfloat16)
    assert found.item() == 1.0078125
