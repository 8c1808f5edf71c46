"""What a merge refuses: NaN, infinity, overflow."""

from __future__ import annotations

import torch
from torch import Tensor

from neuroada_cli.delta.finite import all_finite, broken_row
from neuroada_cli.errors import NumericsError
from neuroada_cli.hub.stored import WEIGHT_DTYPES
from neuroada_cli.show.numbers import describe_dtype


def refuse_broken(weight: Tensor, name: str) -> None:
    """Raises NumericsError where a weight of the base is not finite, naming the row."""
    if weight.dtype in WEIGHT_DTYPES and not all_finite(weight):
        raise NumericsError(
            f"{name} of the base holds NaN or infinity in row {broken_row(weight)}",
            fix="download the base again",
        )


def finite_cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in another type. Raises NumericsError where that is too narrow for it, naming the row."""
    if tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if not all_finite(cast):
        raise NumericsError(
            f"{name} has values in row {broken_row(cast)} that overflow in {describe_dtype(dtype)}",
            fix="choose another --dtype",
        )
    return cast


def refuse_overflow(
    folded_OK: Tensor,
    target: str,
    dtype: torch.dtype,
    where: str | None = None,
    fix: str = "train with a lower optim.lr, or choose a wider --dtype",
    first: int = 0,
) -> None:
    """first  the row of the whole weight that these begin with. Raises NumericsError naming the row."""
    if not all_finite(folded_OK):
        row = first + broken_row(folded_OK)
        raise NumericsError(
            f"{target}, row {row}: the merged weight is not finite in {describe_dtype(dtype)}", where, fix
        )
