"""The protocol that every method follows: all that the training loop and the benchmark know of one.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from neuroada_cli.delta.reselection import Choose
from neuroada_cli.methods.state import MethodState


class Method(Protocol):
    """One instance per model.

    name        as in the recipe's `train.method`
    own_decay   True: `before_step` applies the weight decay itself and AdamW must apply none
    """

    name: str
    own_decay: bool

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        """Freeze and prepare the model.

        indices  module name -> int [O, K], the selection
        whole    names of parameters that train in full beside it (a fresh head, biases)
        """
        ...

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """What the optimizer steps, without the parameters named in `whole`."""
        ...

    def whole_parameters(self) -> list[nn.Parameter]:
        """What the optimizer steps for `whole`: a group of its own (`optim.head_lr`, no decay)."""
        ...

    def before_step(self, model: nn.Module, decay: float = 0.0) -> None:
        """Just before the optimizer's step. decay = lr x weight_decay, used only with `own_decay`."""
        ...

    def after_step(self, model: nn.Module) -> None:
        """Just after the optimizer's step: bring the weights in memory up to date."""
        ...

    def state(self, model: nn.Module) -> MethodState: ...

    def load_state(self, model: nn.Module, state: MethodState) -> None:
        """Exactly back to a saved state. Raises ValueError when names or shapes differ."""
        ...


@runtime_checkable
class Shards(Protocol):
    """A method whose parameters are this rank's rows of larger ones."""

    def take_gradients(self, model: nn.Module) -> None:
        """After the backward passes: the gradients of this rank's rows, summed over all ranks already."""
        ...

    def rows(self, model: nn.Module) -> list[int]:
        """How many rows each of `parameters` has on all ranks together."""
        ...


@runtime_checkable
class Fuses(Protocol):
    """A method that can clip, step and bring the weights up to date at once, on some devices."""

    def fused_step(self, optimizer: torch.optim.AdamW) -> Callable[[Tensor, float | None], None] | None:
        """What does it, given the norm of all gradients and the limit to clip to; None where it cannot.

        The gradients that it takes are gone afterwards, so that the optimizer's own step steps the rest.
        """
        ...


@runtime_checkable
class Reselects(Protocol):
    """A method that can go on with other connections (`train.reselect_every`)."""

    def reselect(
        self, model: nn.Module, choose: Choose, optimizer: torch.optim.Optimizer
    ) -> dict[str, Tensor]:
        """Train what `choose` takes of the weights as they are; where deltas are then: int32 [O, U]."""
        ...
