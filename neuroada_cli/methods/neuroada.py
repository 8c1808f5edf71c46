"""NeuroAda itself: K fp32 deltas per neuron over frozen weights, folded in after every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from neuroada_cli.delta import model as delta
from neuroada_cli.delta import triton_update
from neuroada_cli.delta.quantized import QuantizedDeltaLinear
from neuroada_cli.delta.reselection import Choose, reselect
from neuroada_cli.methods.state import MethodState, WholeParameters, same_names

TRAINS = ".trains"  # in a checkpoint, after a module: which of its deltas train


class NeuroAda:
    """delta[O, K] trains; the weight in memory is round(W + delta) (arXiv:2510.18940, eq. 2).

    delta_dtype  "fp32", or "bf16" for deltas and optimizer state in bf16, as the published code trains
    reselects    `reselect` may be called: weight decay then leaves out what rests
    """

    name = "neuroada"

    def __init__(self, delta_dtype: str = "fp32", reselects: bool = False) -> None:
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[delta_dtype]
        # AdamW decays all deltas, that is, towards the pretrained weights; with `reselects` some rest
        self.own_decay = reselects
        self._chosen: dict[str, tuple[Tensor, Tensor]] = {}
        self._folded = False

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        self._layers = list(delta.attach(model, indices).values())
        for layer in self._layers:
            layer.delta.data = layer.delta.data.to(self._dtype)
        self._whole = WholeParameters(model, whole)

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return [layer.delta for layer in delta.delta_layers(model).values()]

    def whole_parameters(self) -> list[nn.Parameter]:
        return self._whole.masters()

    def before_step(self, model: nn.Module, decay: float = 0.0) -> None:
        """The gradients that exist are exactly the ones that train; decay is ours only with `reselects`."""
        if decay and self.own_decay:
            with torch.no_grad():
                for layer in delta.delta_layers(model).values():
                    kept = 1 - decay
                    layer.delta.mul_(kept if layer.real is None else torch.where(layer.real, kept, 1.0))

    def reselect(
        self, model: nn.Module, choose: Choose, optimizer: torch.optim.Optimizer
    ) -> dict[str, Tensor]:
        """Train other connections from now on, those that `choose` takes of the weights as they are.

        Returns where deltas are now: module name -> int32 [O, U], rows ending in -1.
        """
        self._chosen = reselect(model, choose, optimizer)
        return {name: index_OU for name, (index_OU, _) in self._chosen.items()}

    def fused_step(self, optimizer: torch.optim.AdamW) -> Callable[[Tensor, float | None], None] | None:
        """On CUDA, of deltas in fp32 over weights that are not packed: one launch for all layers."""
        if any(isinstance(layer, QuantizedDeltaLinear) for layer in self._layers):
            return None
        if not self._layers or not triton_update.fits(self._layers[0].to_fold()):
            return None
        update = triton_update.prepared(optimizer, [layer.to_fold() for layer in self._layers])
        if update is None:
            return None

        def step(norm: Tensor, limit: float | None) -> None:
            update(norm, limit)
            self._folded = True

        return step

    def after_step(self, model: nn.Module) -> None:
        if self._folded:  # with the update
            self._folded = False
            delta.forget_inputs()
        else:
            delta.refold_layers(self._layers)
        self._whole.round_down()

    def state(self, model: nn.Module) -> MethodState:
        deltas = {name: layer.delta.detach().float() for name, layer in delta.delta_layers(model).items()}
        if not self._chosen:
            return MethodState(deltas, self._whole.state())
        indices = {name: index_OU.cpu() for name, (index_OU, _) in self._chosen.items()}
        trains = {name + TRAINS: trains_OU.to(torch.uint8) for name, (_, trains_OU) in self._chosen.items()}
        return MethodState(deltas, self._whole.state(), trains, indices)

    def load_state(self, model: nn.Module, state: MethodState) -> None:
        layers = delta.delta_layers(model)
        if state.exact:
            same_names({name + TRAINS: None for name in layers}, state.exact)
            for name, layer in layers.items():
                trains_OU = state.exact[name + TRAINS].bool().to(layer.index.device)
                if trains_OU.shape != layer.index.shape or state.indices is None:
                    raise ValueError(f"{name}: what trains is {tuple(trains_OU.shape)}")
                layer.real = trains_OU
                self._chosen[name] = state.indices[name].to(layer.index.device), trains_OU
        delta.switch(model, state.deltas)
        self._whole.load_state(state.whole)
