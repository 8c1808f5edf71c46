"""Numbers that are none: whether the model came with them."""

from __future__ import annotations

from torch import nn

from neuroada_cli.delta.finite import where_broken
from neuroada_cli.errors import ModelError, NumericsError

WHOLE = "download it again; where its files are whole, load it in fp32"


def not_numbers(model: nn.Module, said: str, fix: str, begun: bool = False) -> NumericsError:
    """The error that says so, with the weight at fault where the model holds NaN or infinity itself.

    begun  its weights have been trained already, so that what they hold now is no fault of its files
    """
    where = None if begun else where_broken(model)
    if where is None:
        return NumericsError(said, fix=fix)
    return NumericsError(f"{said}: {where} of the model holds NaN or infinity", fix=WHOLE)


def refuse_not_numbers(model: nn.Module, source: str) -> None:
    """Raises ModelError for a model that came with NaN or infinity, also where no row of a training meets it:
    a merge would refuse it at the very end.
    """
    if (where := where_broken(model)) is not None:
        raise ModelError(f"{where} holds NaN or infinity", source, WHOLE)
