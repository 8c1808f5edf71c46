"""Where the memory of a training step goes, by tensor bytes or by the CUDA allocator.

The tracker sees every tensor that torch makes and every one that dies, so it knows the exact peak of tensor
bytes in between: what an allocator hands out, without its rounding and without scratch space inside kernels.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from neuroada_cli.delta.quantized import is_quantized, state_of, tensors_of
from neuroada_cli.loop.optim import OptimSettings, adamw
from neuroada_cli.methods.protocol import Method


@dataclass(frozen=True)
class Breakdown:
    """Bytes at the peak of a step. peak is their sum.

    weights      the model as loaded
    state        what the method adds: trained values, indices, masks, gradients, optimizer moments
    activations  everything else that lives at the peak
    """

    weights: int
    state: int
    activations: int

    @property
    def peak(self) -> int:
        return self.weights + self.state + self.activations


@dataclass(frozen=True)
class StepBytes:
    """What lives in one step, in bytes.

    weights  the model as loaded;  gradients  before the update;  left  after the step
    parts    the peaks of the forward pass, of the backward pass and of the update
    """

    weights: int
    gradients: int
    left: int
    parts: tuple[int, ...]

    @property
    def peak(self) -> int:
        return max(self.parts)

    def breakdown(self) -> Breakdown:
        above = self.peak - self.weights
        state = min(self.left - self.weights + self.gradients, above)
        return Breakdown(self.weights, state, above - state)


class TensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, `live` is the bytes of all storages made here or named in `known`; `peak` its highest value."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._seen: dict[int, int] = {}
        self.count(known)

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Take tensors into account that were made elsewhere."""
        for tensor in tensors:
            self._note(tensor)

    def restart(self) -> None:
        """Measure the peak from here on."""
        self.peak = self.live

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled here, and the wrapper would cost more than the counting."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._note(result)
        else:
            for leaf in tree_iter(result):
                if isinstance(leaf, Tensor):
                    self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided:  # a CSR pattern's parts are counted when they are made
            return
        storage = tensor.untyped_storage()
        if id(storage) not in self._seen:
            size = storage.nbytes()
            self._seen[id(storage)] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, id(storage)).atexit = False

    def _forget(self, key: int) -> None:
        self.live -= self._seen.pop(key, 0)


class AllocatorBytes:
    """The same numbers from the CUDA allocator. Make it when nothing but the model is on the device."""

    def __init__(self, weights: int, device: torch.device) -> None:
        self._device = device
        self._before = torch.cuda.memory_allocated(device) - weights

    def __enter__(self) -> AllocatorBytes:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was changed."""

    def count(self, tensors: Iterable[Tensor]) -> None:
        """The allocator knows already."""

    @property
    def live(self) -> int:
        return torch.cuda.memory_allocated(self._device) - self._before

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) - self._before

    def restart(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind some tensors: views and tied weights count once."""
    storages = {id(s): s for t in tensors if t.layout == torch.strided for s in [t.untyped_storage()]}
    return sum(storage.nbytes() for storage in storages.values())


def model_tensors(model: nn.Module) -> list[Tensor]:
    """Everything that a model's weights take; of a quantised layer also what stands in no parameter."""
    packed = [tensor for module in model.modules() if is_quantized(module) for tensor in tensors_of(module)]
    return [*model.parameters(), *model.buffers(), *packed]


def copy_structure(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the module graph whose parameters and buffers are `replace(original)`; ties stay ties.

    Parameters come frozen. What bitsandbytes has packed is not replaced but shared.
    """
    shared = [part for module in model.modules() if is_quantized(module) for part in state_of(module)]
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(replace(parameter).detach(), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = replace(buffer)
    memo |= {id(part): part for part in shared}
    return copy.deepcopy(model, memo)


class StepMemory:
    """A method on a model, and the memory of its steps.

    model   as loaded; everything it holds now counts as weights
    attach  attaches the method; everything it makes and keeps counts as state
    meter   TensorBytes, or AllocatorBytes on CUDA
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        attach: Callable[[], None],
        meter: TensorBytes | AllocatorBytes,
    ) -> None:
        self.model, self.method, self.meter = model, method, meter
        self.weights = storage_bytes(model_tensors(model))
        meter.count(model_tensors(model))
        with meter:
            attach()
            meter.count(model_tensors(model))
            self.optimizer = adamw(model, method, OptimSettings(lr=1e-6))

    def run(self, forward: Callable[[], Tensor], steps: int = 2) -> Breakdown:
        """The peak over the last of `steps` training steps, split by purpose.

        forward  the loss of one batch, with its graph
        Two steps at first, because the optimizer's moments are made at the end of the first one.
        """
        for _ in range(steps):
            found = self.step(forward)
        return found.breakdown()

    def step(self, forward: Callable[[], Tensor]) -> StepBytes:
        """One training step, its parts apart."""
        peaks = []

        def end_part() -> None:
            peaks.append(self.meter.peak)
            self.meter.restart()

        with self.meter:
            self.meter.restart()
            loss = forward()
            end_part()
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
            end_part()
            gradients = storage_bytes(p.grad for p in self._trained() if p.grad is not None)
            self._update()
            end_part()
        return StepBytes(self.weights, gradients, self.meter.live, tuple(peaks))

    def look(self, forward: Callable[[], Tensor]) -> StepBytes:
        """A forward pass that nothing is learnt from, as in validation: its peak is the only part."""
        with self.meter, torch.no_grad():
            self.meter.restart()
            forward()
        return StepBytes(self.weights, 0, self.meter.live, (self.meter.peak,))

    def make_moments(self) -> None:
        """The optimizer's moments, without a step of the model."""
        with self.meter:
            for parameter in self._trained():
                parameter.grad = torch.zeros_like(parameter)
            self._update()

    def _update(self) -> None:
        self.method.before_step(self.model)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(self.model)

    def _trained(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
