"""Mask-based sparse tuning, the baseline: dense gradients and dense Adam, masked to the same positions.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuroada_cli.delta.fold import write_entries
from neuroada_cli.delta.index import filled
from neuroada_cli.delta.layout import Layout
from neuroada_cli.delta.targets import target_of
from neuroada_cli.methods.state import MethodState, WholeParameters, copy_exactly, same_names


@dataclass(frozen=True)
class _Masked:
    """One target: its weight, the chosen columns [O, K], and the pretrained values there [O, K]."""

    weight: nn.Parameter
    layout: Layout
    index: Tensor
    base_values: Tensor

    def values_OK(self) -> Tensor:
        return self.layout.take(self.weight.detach(), self.index)

    @torch.no_grad()
    def write(self, values_OK: Tensor) -> None:
        write_entries(self.weight, self.index, values_OK.to(self.weight.dtype), self.layout)


class Mask:
    """The weights of all targets train in their own data type; every other entry keeps its bits.

    Gradients are masked after every backward pass. The mask is one byte per weight (published code keeps it
    in the weight's data type). Weight decay pulls the chosen entries towards their pretrained values, as it
    does for deltas; AdamW's own would shrink the frozen entries too.
    """

    name = "mask"
    own_decay = True

    def attach(self, model: nn.Module, indices: Mapping[str, Tensor], whole: Sequence[str] = ()) -> None:
        model.requires_grad_(False)
        self._targets: dict[str, _Masked] = {}
        # in one order, however the selection was read: the optimizer's state is saved by position
        for name, index_OK in sorted(indices.items()):
            target = target_of(model, name)
            weight, layout = target.weight, target.layout
            weight.requires_grad_(True)
            index_OK, real_OK = filled(index_OK.to(weight.device, torch.int64))
            chosen_OK = torch.ones_like(index_OK, dtype=torch.bool) if real_OK is None else real_OK
            mask = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
            write_entries(mask, index_OK, chosen_OK, layout)
            weight.register_post_accumulate_grad_hook(_Zero(mask))  # type: ignore[no-untyped-call]
            base_OK = layout.take(weight.detach(), index_OK)
            self._targets[name] = _Masked(weight, layout, index_OK, base_OK)
        self._whole = WholeParameters(model, whole)

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return [target.weight for target in self._targets.values()]

    def whole_parameters(self) -> list[nn.Parameter]:
        return self._whole.masters()

    def before_step(self, model: nn.Module, decay: float = 0.0) -> None:
        if decay:
            for target in self._targets.values():
                values_OK, base_OK = target.values_OK().float(), target.base_values.float()
                target.write(values_OK - decay * (values_OK - base_OK))

    def after_step(self, model: nn.Module) -> None:
        self._whole.round_down()

    def state(self, model: nn.Module) -> MethodState:
        exact = {name: target.values_OK() for name, target in self._targets.items()}
        deltas = {name: exact[name].float() - t.base_values.float() for name, t in self._targets.items()}
        return MethodState(deltas, self._whole.state(), exact)

    @torch.no_grad()
    def load_state(self, model: nn.Module, state: MethodState) -> None:
        same_names(self._targets, state.exact)
        for name, target in self._targets.items():
            values_OK = torch.empty_like(target.base_values)
            copy_exactly(values_OK, state.exact[name], name)
            target.write(values_OK)
        self._whole.load_state(state.whole)


class _Zero:
    """Zeroes the gradient outside the mask, in place, as soon as a backward pass has added to it."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, parameter: Tensor) -> None:
        assert parameter.grad is not None  # autograd calls this right after it stored the gradient
        parameter.grad.mul_(self.mask)
