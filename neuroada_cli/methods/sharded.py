"""NeuroAda on a model whose rows are dealt to the ranks: each trains its own neurons, all save together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from neuroada_cli.delta.sharded import sharded_layers
from neuroada_cli.methods.state import MethodState, copy_exactly, same_names
from neuroada_cli.ranks.group import Ranks


class ShardedNeuroAda:
    """As `NeuroAda`, of layers that `delta.sharded.shard` has cut and whose weights are there.

    O = output neurons, K = chosen inputs per neuron, R = rows of this rank
    """

    name = "neuroada"
    own_decay = False

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        """indices are those of whole layers. Raises ValueError for `whole`, and what does not fit."""
        if whole:
            raise ValueError(f"trains {whole[0]} in full, which cannot be sharded")
        for name, layer in sharded_layers(model).items():
            layer.fill(indices[name], self._ranks)

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """This rank's rows, [R, K] each; some have none."""
        return [layer.own_delta[0] for layer in sharded_layers(model).values()]

    def rows(self, model: nn.Module) -> list[int]:
        return [layer.layout.outputs for layer in sharded_layers(model).values()]

    def whole_parameters(self) -> list[nn.Parameter]:
        return []

    def take_gradients(self, model: nn.Module) -> None:
        for layer in sharded_layers(model).values():
            layer.take_gradient()

    def before_step(self, model: nn.Module, decay: float = 0.0) -> None:
        """Nothing: AdamW does it all."""

    def after_step(self, model: nn.Module) -> None:
        for layer in sharded_layers(model).values():
            layer.refold()

    def state(self, model: nn.Module) -> MethodState:
        """All rows of all layers, on rank 0; on the others only their names count."""
        deltas = {}
        for name, layer in sharded_layers(model).items():
            whole_OK = self._ranks.joined(layer.own("delta").float().cpu(), layer.layout.outputs)
            deltas[name] = whole_OK if self._ranks.first else torch.empty(0)
        return MethodState(deltas, {})

    @torch.no_grad()
    def load_state(self, model: nn.Module, state: MethodState) -> None:
        layers = sharded_layers(model)
        same_names(layers, state.deltas)
        if state.whole or state.exact:
            raise ValueError("holds what a sharded run never writes")
        for name, layer in layers.items():
            delta_OK = state.deltas[name]
            if delta_OK.shape != (layer.layout.outputs, layer.plan.k):
                raise ValueError(f"{name} is {tuple(delta_OK.shape)}")
            copy_exactly(layer.own("delta"), delta_OK[self._ranks.rows(layer.layout.outputs)], name)
            layer.refold()
