"""The memory of a training step that never runs: any architecture, any method, no weights.

The step runs on fake tensors, which have shapes and data types but no memory. Where a model's blocks are
alike it runs with two, three and four of them, and the others follow (`depth.py`).
The result is as right as the step is the same: rows of one length, the same attention kernel.

O = output neurons, K = chosen inputs per neuron, B = rows, S = tokens per row, N = learnt tokens
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from neuroada_cli.delta.model import delta_layers
from neuroada_cli.delta.sampled_grad import BACKENDS
from neuroada_cli.delta.targets import target_of
from neuroada_cli.delta.trained_weight import Watching
from neuroada_cli.loop.linear_cross_entropy import is_frozen_linear, linear_cross_entropy
from neuroada_cli.loop.loss import logits_are_final
from neuroada_cli.loop.modes import evaluating, set_training
from neuroada_cli.loop.recomputing import enable_checkpointing
from neuroada_cli.memory.depth import alike_blocks, by_depth
from neuroada_cli.memory.tracker import Breakdown, StepBytes, StepMemory, TensorBytes, copy_structure
from neuroada_cli.methods.protocol import Method


def predict(
    skeleton: nn.Module,
    targets: Iterable[str],
    method: Method,
    k: int | Mapping[str, int],
    batch: int,
    sequence: int,
    dtype: torch.dtype = torch.float32,
    learnt: int | None = None,
    whole: Sequence[str] = (),
    gradient_checkpointing: bool = False,
    device: str = "cpu",
    padded: bool = False,
    prepare: Callable[[nn.Module], None] | None = None,
    also: Mapping[str, Tensor] | None = None,
) -> Breakdown:
    """Peak memory of training steps that never run; no weights are needed.

    skeleton   the model on any device, also meta (`hub.skeleton`); it is not changed
    targets    names of the layers the method adapts, with K connections per neuron
    k          the same for all layers, or by name; of a layer whose rows differ, that of the longest
    method     a fresh instance; the peers of the bench work as well
    batch, sequence  rows per forward pass and tokens per row (every row as long)
    learnt     how many tokens of the batch are targets; None: all. Only their logits are computed
    whole      parameters that train in full beside the deltas (a fresh head)
    device     "cpu" or "cuda": the CUDA kernel keeps one transposed input
    padded     rows of several lengths: attention then takes a mask [B, 1, S, S], and K and V per head
    prepare    called on the model before the method is attached (the bench's hook on the embeddings)
    also       inputs beside tokens, of which only shapes count: what a decoder gets, and pixels
    """
    return predict_step(
        skeleton, targets, method, k, batch, sequence, dtype, learnt, whole, gradient_checkpointing, device,
        padded, prepare, also,
    ).breakdown()  # fmt: skip


def predict_step(
    skeleton: nn.Module,
    targets: Iterable[str],
    method: Method,
    k: int | Mapping[str, int],
    batch: int,
    sequence: int,
    dtype: torch.dtype = torch.float32,
    learnt: int | None = None,
    whole: Sequence[str] = (),
    gradient_checkpointing: bool = False,
    device: str = "cpu",
    padded: bool = False,
    prepare: Callable[[nn.Module], None] | None = None,
    also: Mapping[str, Tensor] | None = None,
    learns: bool = True,
) -> StepBytes:
    """As `predict`: what lives in each part of the step.

    learns  False: a forward pass between two steps instead, without gradients (validation); its only part
    """
    counts = {name: k if isinstance(k, int) else k[name] for name in targets}

    def forward_of(model: nn.Module) -> Callable[[], Tensor]:
        given = {
            name: torch.empty(value.shape, dtype=dtype if value.is_floating_point() else value.dtype)
            for name, value in (also or {}).items()
        }
        return lambda: _fake_loss(model, skeleton, batch, sequence, learnt, given)

    def step_of(model: nn.Module, names: Iterable[str]) -> StepBytes:
        here = {name: counts[name] for name in names}
        return _step(model, method, here, whole, prepare, gradient_checkpointing, forward_of, learns)

    with _fake_tensors(device, padded):

        def copied() -> nn.Module:
            # buffers (RoPE's frequencies) keep their own type, as they do when a model is loaded
            return copy_structure(
                skeleton,
                lambda tensor: torch.empty(
                    tensor.shape, dtype=dtype if isinstance(tensor, nn.Parameter) else tensor.dtype
                ),
            )

        stack = alike_blocks(skeleton, counts, whole)
        settings = (dtype, gradient_checkpointing, device, padded, learnt is None, learns)
        kind = (type(method), *counts.items(), *whole, *settings, *(also or {}))
        return by_depth(stack, copied, step_of, kind) or step_of(copied(), counts)


def _step(
    model: nn.Module,
    method: Method,
    counts: Mapping[str, int],
    whole: Sequence[str],
    prepare: Callable[[nn.Module], None] | None,
    gradient_checkpointing: bool,
    forward_of: Callable[[nn.Module], Callable[[], Tensor]],
    learns: bool,
) -> StepBytes:
    """One step of a model of fake tensors, the optimizer's moments being there already; or one look."""
    set_training(model)
    for module in model.modules():
        if hasattr(module, "layerdrop"):
            cast(Any, module).layerdrop = _Never()
    if prepare is not None:
        prepare(model)
    if gradient_checkpointing:
        enable_checkpointing(model, Watching)  # torch leaves it for the time of a backward pass
    indices = {
        name: torch.zeros(target_of(model, name).shape[0], count, dtype=torch.int32)
        for name, count in counts.items()
    }

    def attach() -> None:
        method.attach(model, indices, whole)
        for layer in delta_layers(model).values():
            layer.backend = "shapes_only"

    step = StepMemory(model, method, attach, _FakeBytes())
    step.make_moments()
    if learns:
        return step.step(forward_of(model))
    with evaluating(model):
        return step.look(forward_of(model))


class _Never:
    """A chance of leaving a layer out that no drawn number is under: a step is largest with all of them.

    Drawn numbers are fake, and of these every condition holds.
    """

    def __gt__(self, drawn: object) -> bool:
        return False


def _fake_loss(
    model: nn.Module,
    original: nn.Module,
    batch: int,
    sequence: int,
    learnt: int | None,
    also: Mapping[str, Tensor],
) -> Tensor:
    """As `loop.loss.token_loss` on whole rows; a classifier's loss where there is no output embedding.

    original  what `model` is a copy of
    """
    tokens_BS = torch.zeros(batch, sequence, dtype=torch.int64)
    # as rows are given: encoders make no mask without it, and T5 one per row and head
    text = {"input_ids": tokens_BS, "attention_mask": torch.ones_like(tokens_BS)}
    head = cast(Any, model).get_output_embeddings()
    if head is None:
        logits_BC = model(**(text if sequence else {}), **also).logits.float()
        return F.cross_entropy(logits_BC, torch.zeros(batch, dtype=torch.int64), reduction="sum")
    answers_BS = also.get("decoder_input_ids", tokens_BS)
    most = batch * (answers_BS.shape[1] - 1)
    count = min(learnt or most, most)
    targets_N = torch.zeros(count, dtype=torch.int64)
    sliced = is_frozen_linear(head) and logits_are_final(model, tokens_BS, original)
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BSH, *rest = args
        kept.append(hidden_BSH.reshape(-1, hidden_BSH.shape[-1])[targets_N])
        hidden_NH = kept[0][:1].detach() if sliced else kept.pop()
        return (hidden_NH.unsqueeze(0), *rest)

    handle = head.register_forward_pre_hook(keep)
    try:
        logits_NV = model(**text, use_cache=False, **also).logits[0]
    finally:
        handle.remove()
    if sliced:
        return linear_cross_entropy(kept[0], head, targets_N)
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")


class _FakeBytes(TensorBytes):  # type: ignore[no-untyped-call]
    """The tracker, which also answers what code asks of values, for fake tensors have none: numbers are 0,
    conditions hold.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # half of all that comes by; nothing is made
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 0.0 if dtype.is_floating_point else 0
        if func is torch.ops.aten._grouped_mm.default:  # torch knows its shape in bf16 only
            x, weight, ends = args[:3]
            experts = ends.shape if weight.ndim == 2 else ()  # of a gradient of the weights
            shape = (*experts, x.shape[0], weight.shape[-1])
            return super().__torch_dispatch__(torch.ops.aten.new_empty.default, types, (x, shape), {})
        if func is torch.ops.aten.split_with_sizes.default:  # sizes that were values: as many to each
            args = (args[0], _filling(args[1], args[0].shape[args[2] if len(args) > 2 else 0]), *args[2:])
        return super().__torch_dispatch__(func, types, args, kwargs)


def _filling(sizes: Sequence[int], whole: int) -> list[int]:
    """The sizes if they make up the whole, else equal ones."""
    if sum(sizes) == whole:
        return list(sizes)
    ends = [whole * number // len(sizes) for number in range(len(sizes) + 1)]
    return [after - before for before, after in pairwise(ends)]


@contextmanager
def _fake_tensors(device: str, padded: bool) -> Iterator[None]:
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it writes what it raises, too
    before, log.disabled = log.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _shapes_only(device), _mask(padded), Watching():
            yield
    finally:
        log.disabled = before


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
