"""What a merge refuses to write: NaN, infinity, overflow."""

from __future__ import annotations

import torch
from torch import Tensor

from neuroada_cli.delta.finite import all_finite, broken_row
from neuroada_cli.errors import NumericsError
from neuroada_cli.hub.stored import WEIGHT_DTYPES
from neuroada_cli.show.numbers import describe_dtype


def _refuse_broken(weight: Tensor, name: str) -> None:
    if weight.dtype in WEIGHT_DTYPES and not all_finite(weight):
        raise NumericsError(
            f"{name} of the base holds NaN or infinity in row {broken_row(weight)}",
            fix="download the base again",
        )


def _finite_cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if not all_finite(cast):
        raise NumericsError(
            f"{name} has values in row {broken_row(cast)} that overflow in {describe_dtype(dtype)}",
            fix="choose another --dtype",
        )
    return cast


def _refuse_overflow(folded_OK: Tensor, target: str, dtype: torch.dtype, first: int = 0) -> None:
    finite_OK = torch.isfinite(folded_OK)
    if not finite_OK.all():
        wrong = (~finite_OK).nonzero()
        row = first + int(wrong[0, 0])
        raise NumericsError(
            f"{target}, row {row}: the merged weight is not finite in {describe_dtype(dtype)}",
            fix="train with a lower optim.lr, or choose a wider --dtype",
        )
