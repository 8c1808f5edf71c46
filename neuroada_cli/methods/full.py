"""Full fine-tuning, the other baseline: every parameter trains in its own data type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from neuroada_cli.methods.state import MethodState, WholeParameters, copy_exactly, same_names


class Full:
    name = "full"
    own_decay = False

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        """`indices` is not used: everything trains. `whole` only chooses the optimizer's group."""
        model.requires_grad_(True)
        self._names = {name for name, _ in model.named_parameters()} - set(whole)
        self._whole = WholeParameters(model, whole)

    def _body(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: p for name, p in model.named_parameters() if name in self._names}

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return list(self._body(model).values())

    def whole_parameters(self) -> list[nn.Parameter]:
        return self._whole.masters()

    def before_step(self, model: nn.Module, decay: float = 0.0) -> None:
        """Nothing: AdamW does it all."""

    def after_step(self, model: nn.Module) -> None:
        self._whole.round_down()

    def state(self, model: nn.Module) -> MethodState:
        body = {name: parameter.detach() for name, parameter in self._body(model).items()}
        return MethodState({}, {**body, **self._whole.state()})

    @torch.no_grad()
    def load_state(self, model: nn.Module, state: MethodState) -> None:
        body, whole = self._body(model), self._whole.state()
        same_names({**body, **whole}, state.whole)
        for name, parameter in body.items():
            copy_exactly(parameter, state.whole[name], name)
        self._whole.load_state({name: state.whole[name] for name in whole})
