"""Full fine-tuning, the other baseline: every parameter trains in its own data type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from neuroada_cli.methods.state import TrainedByName


class Full(TrainedByName):
    """Everything trains; parameters named in `whole` are only a group of their own for the optimizer."""

    name = "full"

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        """`indices` is not used."""
        model.requires_grad_(True)
        self.finish(model, whole)
