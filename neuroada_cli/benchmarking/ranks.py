"""A step of a sharded model, measured on one of its ranks: bytes that live in it, and bytes that it sends.

O = output neurons, K = chosen inputs per neuron
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from neuroada_cli import hub
from neuroada_cli.benchmarking.steps import random_batch
from neuroada_cli.delta.targets import find_targets
from neuroada_cli.hub.sharded import load_sharded
from neuroada_cli.loop.loss import token_loss
from neuroada_cli.loop.optim import OptimSettings, adamw
from neuroada_cli.loop.recomputing import enable_checkpointing
from neuroada_cli.memory import TensorBytes
from neuroada_cli.methods import METHODS
from neuroada_cli.methods.protocol import Method, Shards
from neuroada_cli.ranks.group import Ranks


@dataclass(frozen=True)
class Measured:
    """peak bytes of live tensors in a step; bytes sent in it."""

    peak: int
    sent: int


def measure(
    ranks: Ranks,
    base: hub.Base,
    k: int,
    dtype: torch.dtype,
    batch: int,
    sequence: int,
    gradient_checkpointing: bool = False,
    quantization: str | None = None,
) -> Measured:
    """The second of two steps, when the optimizer's moments are there, on random tokens on the CPU."""
    targets = find_targets(base.graph, heads=hub.default_exclude(base.graph))
    indices = {
        name: torch.arange(k, dtype=torch.int32).expand(target.shape[0], k)
        for name, target in targets.items()
    }
    method: Method = METHODS["neuroada"].build_sharded(ranks)
    with _counted() as (meter, sent):
        model = load_sharded(base, indices, dtype, ranks, torch.device("cpu"), quantization=quantization)
        method.attach(model, indices)
        if gradient_checkpointing:
            enable_checkpointing(model)
        model.train()
        optimizer = adamw(model, method, OptimSettings(lr=1e-6))
        meter.count([*(_own(p) for p in model.parameters()), *model.buffers()])
        vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        tokens = random_batch(vocabulary, "generation", batch, sequence, "cpu")
        with meter:
            for _ in range(2):
                gc.collect()
                meter.restart()
                sent.clear()
                _step(model, method, optimizer, lambda: token_loss(model, tokens)[0])
    return Measured(meter.peak, sum(sent))


def _own(parameter: Any) -> torch.Tensor:
    held: torch.Tensor = parameter.to_local()
    return held.detach()


def _step(
    model: nn.Module, method: Method, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]
) -> None:
    assert isinstance(method, Shards)
    loss().backward()  # type: ignore[no-untyped-call]
    method.take_gradients(model)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.after_step(model)


class _Bytes(TensorBytes):  # type: ignore[no-untyped-call]
    """Sees also what `fully_shard` gives up and takes again without any operation of torch's."""

    def resized(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._seen:
            self.live += storage.nbytes() - self._seen[id(storage)]
            self._seen[id(storage)] = storage.nbytes()
            self.peak = max(self.peak, self.live)
        else:
            self.count([tensor])


@contextmanager
def _counted() -> Iterator[tuple[_Bytes, list[int]]]:
    """(live bytes; bytes of every message) inside, by standing in the way of what `fully_shard` calls."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

    meter, sent = _Bytes(), list[int]()

    def noting(original: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
        def call(tensor: torch.Tensor) -> None:
            original(tensor)
            meter.resized(tensor)

        return call

    def counting(original: Callable[..., Any], place: int, name: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            message = named[name] if name in named else given[place]
            sent.append(message.numel() * message.element_size() * (dist.get_world_size() - 1))
            return original(*given, **named)

        return call

    changes: list[tuple[Any, str, Any]] = [
        (_fsdp_param, "alloc_storage", noting(_fsdp_param.alloc_storage)),
        (_fsdp_param_group, "alloc_storage", noting(_fsdp_param.alloc_storage)),
        (_fsdp_param, "free_storage", noting(_fsdp_param.free_storage)),
    ]
    for name, place, part in (
        ("all_gather_single", 1, "input_tensor"), ("all_gather_into_tensor", 1, "input_tensor"),
        ("reduce_scatter_single", 0, "output"), ("reduce_scatter_tensor", 0, "output"),
    ):  # fmt: skip
        if hasattr(dist, name):  # torch has called them by two names
            changes.append((dist, name, counting(getattr(dist, name), place, part)))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, other in changes:
        setattr(owner, name, other)
    try:
        yield meter, sent
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)
