"""Numbers that are none: whether the model came with them."""

from __future__ import annotations

from torch import nn

from neuroada_cli.delta.finite import where_broken
from neuroada_cli.errors import NumericsError

WHOLE = "download it again; where its files are whole, load it in fp32"


def not_numbers(model: nn.Module, said: str, fix: str, begun: bool = False) -> NumericsError:
    """The error that says so, with the weight at fault where the model holds NaN or infinity itself.

    begun  its weights have been trained already, so that what they hold now is no fault of its files
    """
    where = None if begun else where_broken(model)
    if where is None:
        return NumericsError(said, fix=fix)
    return NumericsError(f"{said}: {where} of the model holds NaN or infinity", fix=WHOLE)
