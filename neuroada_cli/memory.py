"""Where the memory of a training step goes: a tracker of live tensor bytes, and a prediction without weights.

The tracker sees every tensor that torch makes and every one that dies, so it knows the exact peak of tensor
bytes in between: what an allocator hands out, without its rounding and without scratch space inside kernels.

The prediction runs the same step on fake tensors, which have shapes and data types but no memory: any
architecture, any method, a few seconds for a 7B model. It is therefore as right as the step is the same:
rows without padding, the same attention kernel.

O = output neurons, I = inputs, K = chosen inputs per neuron, B = rows, S = tokens per row
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from neuroada_cli.delta.model import delta_layers
from neuroada_cli.delta.sampled_grad import BACKENDS
from neuroada_cli.methods import Method
from neuroada_cli.selecting import layer_shape
from neuroada_cli.training.optim import OptimSettings, adamw


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

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
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
    return [*model.parameters(), *model.buffers()]


def copy_structure(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the module graph whose parameters and buffers are `replace(original)`; ties stay ties.

    Parameters come frozen.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(replace(parameter).detach(), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = replace(buffer)
    return copy.deepcopy(model, memo)


# ---------------------------------------------------------------------------------------------------
# Prediction


def predict(
    skeleton: nn.Module,
    targets: Iterable[str],
    method: Method,
    k: int,
    batch: int,
    sequence: int,
    dtype: torch.dtype = torch.float32,
    learnt: int | None = None,
    whole: Sequence[str] = (),
    gradient_checkpointing: bool = False,
    device: str = "cpu",
    padded: bool = False,
    prepare: Callable[[nn.Module], None] | None = None,
) -> Breakdown:
    """Peak memory of training steps that never run; no weights are needed.

    skeleton   the model on any device, also meta (`hub.skeleton`); it is not changed
    targets    names of the layers the method adapts, with K connections per neuron
    method     a fresh instance; the peers of the bench work as well
    batch, sequence  rows per forward pass and tokens per row (every row as long)
    learnt     how many tokens of the batch are targets; None: all. Only their logits are computed
    whole      parameters that train in full beside the deltas (a fresh head)
    device     "cpu" or "cuda": the CUDA kernel keeps one transposed input
    padded     rows of several lengths: attention then takes a mask [B, 1, S, S], and K and V per head
    prepare    called on the model before the method is attached (the bench's hook on the embeddings)
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    checks = _ChecksPass()  # type: ignore[no-untyped-call]
    with FakeTensorMode(allow_non_fake_inputs=True), checks, _shapes_only(device), _mask(padded):

        def fake(tensor: Tensor) -> Tensor:
            # buffers (RoPE's frequencies) keep their own type, as they do when a model is loaded
            return torch.empty(
                tensor.shape, dtype=dtype if isinstance(tensor, nn.Parameter) else tensor.dtype
            )

        model = copy_structure(skeleton, fake)
        model.train()
        if prepare is not None:
            prepare(model)
        if gradient_checkpointing:
            cast(Any, model).gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        indices = {
            name: torch.zeros(layer_shape(model.get_submodule(name))[0], k, dtype=torch.int32)
            for name in targets
        }

        def attach() -> None:
            method.attach(model, indices, whole)
            for layer in delta_layers(model).values():
                layer.backend = "shapes_only"

        return measure_steps(model, method, attach, lambda: _fake_loss(model, batch, sequence, learnt))


def measure_steps(
    model: nn.Module,
    method: Method,
    attach: Callable[[], None],
    forward: Callable[[], Tensor],
    steps: int = 2,
    allocator: AllocatorBytes | None = None,
) -> Breakdown:
    """The peak over the last of `steps` training steps, split by purpose: tensor bytes, or the allocator's.

    model    as loaded; everything it holds now counts as weights
    attach   attaches the method; everything it makes and keeps counts as state
    forward  the loss of one batch, with its graph
    Two steps, because the optimizer's moments are made at the end of the first.
    """
    weights = storage_bytes(model_tensors(model))
    with allocator or TensorBytes(model_tensors(model)) as tracker:
        attach()
        tracker.count(model_tensors(model))
        optimizer = adamw(model, method, OptimSettings(lr=1e-6))
        for _ in range(steps):
            tracker.restart()
            forward().backward()  # type: ignore[no-untyped-call]
            gradients = storage_bytes(p.grad for p in _trained(optimizer) if p.grad is not None)
            method.before_step(model)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(model)
    state = min(tracker.live - weights + gradients, tracker.peak - weights)
    return Breakdown(weights, state, tracker.peak - weights - state)


def _trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _fake_loss(model: nn.Module, batch: int, sequence: int, learnt: int | None) -> Tensor:
    """As `training.loss.token_loss` on whole rows; a classifier's loss where there is no output embedding."""
    tokens_BS = torch.zeros(batch, sequence, dtype=torch.int64)
    head = cast(Any, model).get_output_embeddings()
    if head is None:
        logits_BC = model(input_ids=tokens_BS).logits.float()
        return F.cross_entropy(logits_BC, torch.zeros(batch, dtype=torch.int64), reduction="sum")
    count = min(learnt or batch * (sequence - 1), batch * (sequence - 1))

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BSH, *rest = args
        picked = torch.zeros(count, dtype=torch.int64)
        return (hidden_BSH.reshape(-1, hidden_BSH.shape[-1])[picked].unsqueeze(0), *rest)

    handle = head.register_forward_pre_hook(keep)
    try:
        logits_NV = model(input_ids=tokens_BS, use_cache=False).logits[0]
    finally:
        handle.remove()
    return F.cross_entropy(logits_NV.float(), torch.zeros(count, dtype=torch.int64), reduction="sum")


class _ChecksPass(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers what code asks of values, which fake tensors have none of: numbers are 0, conditions hold."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 0.0 if dtype.is_floating_point else 0
        return func(*args, **(kwargs or {}))


@contextmanager
def _mask(padded: bool) -> Iterator[None]:
    """transformers leaves the attention mask out where no row is padded, but never for fake tensors."""
    from transformers import masking_utils

    original = getattr(masking_utils, "is_tracing", None)
    if padded or original is None:
        yield
        return
    masking_utils.is_tracing = lambda *_: False
    try:
        yield
    finally:
        masking_utils.is_tracing = original


@contextmanager
def _shapes_only(device: str) -> Iterator[None]:
    """A back-end of the sampled gradient that allocates what the real ones do and computes nothing.

    Kernels of our own read raw memory, and fake tensors have none.
    """
    transposed: list[Tensor] = []

    def allocate(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor) -> Tensor:
        if device != "cpu":
            transposed[:] = [torch.empty_like(x_TI)]
        return torch.empty(index_OK.shape, dtype=torch.float32)

    BACKENDS["shapes_only"] = allocate
    try:
        yield
    finally:
        del BACKENDS["shapes_only"]
