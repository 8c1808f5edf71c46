"""What a method has learnt, and the parameters it trains in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MethodState:
    """Everything that training changed.

    deltas  module name -> fp32 [O, K]: what an adapter holds
    whole   parameter name -> tensor: parameters trained in full
    exact   what a bit-exact resume needs beyond these two
    indices module name -> int32 [O, K] where the deltas are, if not where the selection said at the start
    """

    deltas: dict[str, Tensor]
    whole: dict[str, Tensor]
    exact: dict[str, Tensor] = field(default_factory=dict)
    indices: dict[str, Tensor] | None = None


class WholeParameters:
    """Parameters that train in full beside the deltas (a fresh head, biases).

    In a bf16 or fp16 model each gets an fp32 master that the optimizer steps and whose rounded value is the
    parameter: small updates add up, and what trains is what is shipped, as for the deltas.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] = ()) -> None:
        parameters = dict(model.named_parameters())
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name in names:
            parameter = parameters[name]
            parameter.requires_grad_(True)
            master = parameter
            if parameter.dtype != torch.float32:
                master = nn.Parameter(parameter.detach().float())
                parameter.register_post_accumulate_grad_hook(_HandOver(master))  # type: ignore[no-untyped-call]
            self._pairs[name] = (parameter, master)

    def masters(self) -> list[nn.Parameter]:
        return [master for _, master in self._pairs.values()]

    @torch.no_grad()
    def round_down(self) -> None:
        """Every parameter becomes its master's value in the parameter's own data type."""
        for parameter, master in self._pairs.values():
            if master is not parameter:
                parameter.copy_(master)

    def state(self) -> dict[str, Tensor]:
        return {name: master.detach() for name, (_, master) in self._pairs.items()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        same_names(self._pairs, tensors)
        for name, (_, master) in self._pairs.items():
            copy_exactly(master, tensors[name], name)
        self.round_down()


class _HandOver:
    """Moves a finished gradient to the fp32 master, so that micro-batches add up in fp32."""

    def __init__(self, master: nn.Parameter) -> None:
        self.master = master

    def __call__(self, parameter: Tensor) -> None:
        assert parameter.grad is not None  # autograd calls this right after it stored the gradient
        grad = parameter.grad.float()
        self.master.grad = grad if self.master.grad is None else self.master.grad + grad
        parameter.grad = None


def same_names(here: Mapping[str, object], there: Mapping[str, object]) -> None:
    """Raises ValueError naming one entry that only one side has."""
    if odd := sorted(here.keys() ^ there.keys()):
        raise ValueError(f"{odd[0]} is in only one of the model and the saved state")


def copy_exactly(target: Tensor, source: Tensor, name: str) -> None:
    """target <- source without broadcasting. Raises ValueError when the shapes differ."""
    if target.shape != source.shape:
        raise ValueError(f"{name} is {tuple(source.shape)}, the model has {tuple(target.shape)}")
    target.copy_(source)


class TrainedByName:
    """What methods share that add or free whole parameters: those that ask for a gradient train, in their own
    data type.
    """

    name = "parameters"
    own_decay = False

    def freeze(self, model: nn.Module) -> None:
        model.requires_grad_(False)

    def finish(self, model: nn.Module, whole: Sequence[str]) -> None:
        """Call at the end of `attach`."""
        trained = (name for name, p in model.named_parameters() if p.requires_grad)
        self._names = [name for name in trained if name not in whole]
        self._whole = WholeParameters(model, whole)

    def _trained(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(model.named_parameters())
        return {name: parameters[name] for name in self._names}

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return list(self._trained(model).values())

    def whole_parameters(self) -> list[nn.Parameter]:
        return self._whole.masters()

    def before_step(self, model: nn.Module, decay: float = 0.0) -> None:
        """Nothing: AdamW does it all."""

    def after_step(self, model: nn.Module) -> None:
        self._whole.round_down()

    def state(self, model: nn.Module) -> MethodState:
        trained = {name: parameter.detach() for name, parameter in self._trained(model).items()}
        return MethodState({}, {**trained, **self._whole.state()})

    @torch.no_grad()
    def load_state(self, model: nn.Module, state: MethodState) -> None:
        trained, whole = self._trained(model), self._whole.state()
        same_names({**trained, **whole}, state.whole)
        for name, parameter in trained.items():
            copy_exactly(parameter, state.whole[name], name)
        self._whole.load_state({name: state.whole[name] for name in whole})
