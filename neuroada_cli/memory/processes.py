"""What one of several processes needs, and what it sends: each with the whole model, or with its own rows.

Worked out from shapes and from a step of one process that never runs (`predict_step`). In the sharded case
the weights of a block are put together for its forward and its backward; while that happens they are there
twice: what has arrived, and what is computed with.

O = output neurons, I = inputs, K = chosen inputs per neuron, N = processes
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from neuroada_cli.delta.names import split_at_block
from neuroada_cli.delta.quantized import packed_shapes, unpacked_bytes
from neuroada_cli.delta.targets import target_of
from neuroada_cli.memory.tracker import StepBytes

GATHERED_BLOCKS = 2  # whole at once, at the busiest moment
DELTA, INDEX = 4, 4  # bytes of a delta (and of each of its two moments and its gradient), of its place


@dataclass(frozen=True)
class ProcessBytes:
    """Of one of several processes, at the peak of a step; the first rank's, which has the most rows.

    weights      that it holds
    state        deltas, their places, frozen entries and moments that it holds
    gathered     whole tensors of blocks at work, put together from all ranks
    activations  everything else: what one process needs for its own micro-batch
    sent         bytes that it sends per optimizer step
    """

    weights: int
    state: int
    gathered: int
    activations: int
    sent: int

    @property
    def peak(self) -> int:
        return self.weights + self.state + self.gathered + self.activations


@dataclass(frozen=True)
class _Part:
    """One tensor that is cut by rows. name tells its block; trains: whether a gradient goes back."""

    name: str
    rows: int
    row_bytes: int
    trains: bool = False

    def held(self, processes: int) -> int:
        return -(-self.rows // processes) * self.row_bytes

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


def of_process(
    skeleton: nn.Module,
    k: Mapping[str, int],
    step: StepBytes,
    processes: int,
    sharded: bool,
    dtype: torch.dtype,
    quantized: Mapping[str, str] | None = None,
    micro_batches: int = 1,
) -> ProcessBytes:
    """One process's share.

    k          target -> connections per neuron
    step       of one process with the whole, unquantised model, on the micro-batch that each of them gets
    quantized  layer -> how its weight is packed (`model.quantization`)
    micro_batches  that each process works on per step
    """
    quantized = quantized or {}
    parts = _parts(skeleton, k, dtype, quantized)
    share = processes if sharded else 1
    weights = sum(part.held(share) for part in parts if not part.name.endswith(STATE))
    gathered_state = sum(part.held(share) for part in parts if part.name.endswith(STATE))
    neurons = {name: target_of(skeleton, name).shape[0] for name in k}
    own = sum(-(-rows // share) * k[name] for name, rows in neurons.items())
    # of own rows: the frozen entries, two moments, and the gradient while it is summed
    state = gathered_state + own * (dtype.itemsize + 3 * DELTA)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in skeleton.buffers())
    forward, backward, update = (part - step.left for part in step.parts)
    unpacked = (
        math.prod(target_of(skeleton, name).shape) * unpacked_bytes(kind, dtype)
        for name, kind in quantized.items()
    )
    dense = max(unpacked, default=0)
    if not sharded:
        sums = sum(part.nbytes for part in parts if part.trains)
        activations = max(forward, backward, update) + dense
        return ProcessBytes(weights + buffers, state, 0, activations, _ring(2 * sums, processes))
    outside, block = _gathered(parts)
    busiest = max((forward + dense, 0), (backward + dense, GATHERED_BLOCKS * block), key=sum)
    sent = micro_batches * _sent(parts, processes)
    return ProcessBytes(weights + buffers, state, outside + busiest[1], busiest[0], sent)


def of_replica(step: StepBytes, processes: int) -> ProcessBytes:
    """The same of any method, where each process has the whole model: `step` is its own."""
    own = step.breakdown()
    return ProcessBytes(own.weights, own.state, 0, own.activations, _ring(2 * step.gradients, processes))


# of a delta layer, beside its weight; put together like it
STATE = (".index", ".delta", ".folded")


def _parts(
    skeleton: nn.Module, k: Mapping[str, int], dtype: torch.dtype, quantized: Mapping[str, str]
) -> list[_Part]:
    found = []
    for name, parameter in skeleton.named_parameters():
        layer = name.removesuffix(".weight")
        rows = parameter.shape[0] if parameter.ndim else 1
        if layer in quantized:
            packed, scale = packed_shapes(*target_of(skeleton, layer).shape, quantized[layer])
            found.append(_Part(f"{layer}.packed", packed[0], packed[1]))
            found.append(_Part(f"{layer}.scale", scale[0], 4 * math.prod(scale[1:])))
        else:
            found.append(_Part(name, rows, parameter.numel() // max(1, rows) * dtype.itemsize))
    for name, count in k.items():
        rows = target_of(skeleton, name).shape[0]
        found.append(_Part(f"{name}.index", rows, INDEX * count))
        found.append(_Part(f"{name}.delta", rows, DELTA * count, trains=True))
        if name in quantized:
            found.append(_Part(f"{name}.folded", rows, dtype.itemsize * count))
    return found


def _gathered(parts: list[_Part]) -> tuple[int, int]:
    """(bytes outside the blocks, which stay whole through a step; bytes of the largest block)."""
    blocks: dict[str | None, int] = {}
    for part in parts:
        block, _ = split_at_block(part.name)
        blocks[block] = blocks.get(block, 0) + part.nbytes
    outside = blocks.pop(None, 0)
    return outside, max(blocks.values(), default=0)


def _sent(parts: list[_Part], processes: int) -> int:
    """Per micro-batch: blocks are put together twice, for the forward and the backward, the rest once; and
    every gradient goes to whose rows it is of. Rows that do not divide are filled up, as torch does.
    """
    own = 0
    for part in parts:
        block, _ = split_at_block(part.name)
        times = (1 if block is None else 2) + part.trains
        own += times * part.held(processes)
    return own * (processes - 1)


def _ring(nbytes: int, processes: int) -> int:
    """What each of N processes sends when all get, or sum up, so many bytes: (N - 1) / N of them."""
    return nbytes * (processes - 1) // processes
