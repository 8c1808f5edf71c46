"""NeuroAda itself: K fp32 deltas per neuron over frozen weights, folded in after every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from neuroada_cli.delta import model as delta
from neuroada_cli.methods.state import MethodState, WholeParameters


class NeuroAda:
    """delta[O, K] trains; the weight in memory is round(W + delta) (arXiv:2510.18940, eq. 2).

    delta_dtype  "fp32", or "bf16" for deltas and optimizer state in bf16, as the published code trains
    """

    name = "neuroada"
    own_decay = False  # AdamW decays the deltas, that is, towards the pretrained weights

    def __init__(self, delta_dtype: str = "fp32") -> None:
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[delta_dtype]

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        delta.attach(model, indices)
        for layer in delta.delta_layers(model).values():
            layer.delta.data = layer.delta.data.to(self._dtype)
        self._whole = WholeParameters(model, whole)

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return [layer.delta for layer in delta.delta_layers(model).values()]

    def whole_parameters(self) -> list[nn.Parameter]:
        return self._whole.masters()

    def before_step(self, model: nn.Module, decay: float = 0.0) -> None:
        """Nothing: the gradients that exist are exactly the ones that train."""

    def after_step(self, model: nn.Module) -> None:
        delta.refold(model)
        self._whole.round_down()

    def state(self, model: nn.Module) -> MethodState:
        deltas = {name: layer.delta.detach().float() for name, layer in delta.delta_layers(model).items()}
        return MethodState(deltas, self._whole.state())

    def load_state(self, model: nn.Module, state: MethodState) -> None:
        delta.switch(model, state.deltas)
        self._whole.load_state(state.whole)
