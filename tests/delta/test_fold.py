"""round(W + delta): the sum in fp32, rounded once."""

from __future__ import annotations

import pytest
import torch

from neuroada_cli.delta.fold import fold_entries, take_entries, write_entries
from neuroada_cli.delta.layout import Layout


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


LAYOUTS = [Layout(6, 9), Layout(6, 9, transposed=True), Layout(6, 9, experts=3), Layout(6, 9, True, 3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_taken_entries_are_the_weights_own(dtype: torch.dtype, layout: Layout) -> None:
    """To the bit, NaN as well, by the kernel and without it; and written back they are where they were."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(layout.stored_shape, generator=generator).to(dtype)
    weight.view(-1)[7] = torch.nan
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    rows_OI = layout.rows(weight.view(bits)).reshape(layout.shape)
    index_OK = torch.rand(layout.shape, generator=generator).argsort(1)[:, :4].to(torch.int32)
    expected_OK = rows_OI.gather(1, index_OK.long())
    for places in (index_OK, index_OK.long()):  # the kernel takes int32 only
        found_OK = take_entries(weight, places, layout)
        assert torch.equal(found_OK.view(bits), expected_OK)
    before = weight.clone()
    write_entries(weight, index_OK, torch.zeros_like(found_OK), layout)
    write_entries(weight, index_OK, found_OK, layout)
    assert torch.equal(weight.view(bits), before.view(bits))
