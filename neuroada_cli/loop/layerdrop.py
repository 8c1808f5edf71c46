"""Models that leave out whole layers at random in training (LayerDrop: M2M100 and others of BART's kin)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from neuroada_cli.ranks.group import Ranks

NAME = "layerdrop"  # what transformers calls the chance of it, on the modules that draw


def drops_layers(model: nn.Module) -> bool:
    """Whether a layer may be without a gradient in a step for no other reason than chance."""
    return any(getattr(module, NAME, 0.0) > 0.0 for module in model.modules())


def drop_alike(model: nn.Module, ranks: Ranks) -> None:
    """On ranks that hold a model's rows together a layer is left out by all of them or by none: who leaves it
    out does not send its rows to the others, who wait for them.

    All ranks call it, and run as many forwards in training as the others.
    """
    for module in model.modules():
        chance = getattr(module, NAME, 0.0)
        if isinstance(chance, float) and chance > 0.0:
            module.layerdrop = _Told(chance, ranks)  # type: ignore[assignment]


class _Told:
    """A chance that is compared with a drawn number as rank 0's is; the others draw theirs for nothing."""

    def __init__(self, chance: float, ranks: Ranks) -> None:
        self._chance, self._ranks = chance, ranks

    def __gt__(self, other: Any) -> bool:
        if not isinstance(other, Tensor):
            return bool(self._chance > other)
        return bool(self._ranks.largest(int(self._ranks.first and bool(other < self._chance))))
