"""The sampled gradient on CUDA for a larger K, by buckets: connections whose inputs and neurons lie together.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens, P = parts the tokens are split into,
N = connections of one program, B = programs that all connections need

Every program owns N connections between BLOCK_O neurons and `block_i` inputs and keeps their sums in
registers. Four tokens at a time, it puts that part of x and of g into shared memory, four tokens in a word,
and looks up both sides of each connection there. So x and g are read by tiles, as in a dense product, and not
once per connection; `benchmarks/sm90.py` says what that saves on paper.

Which connections a program owns, and in which order, is worked out once per index: so that 16 lanes that look
up at once mostly find different banks of shared memory. It changes no sum: each is one connection's, over the
tokens in their order.

It is taken only where a table measured on a GPU has it as the fastest (`sampled_grad.pick_backend`).
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from neuroada_cli.delta import triton_grad

SLOTS = 1 << 13  # connections of a program
WARPS = 16
BLOCK_O = 1 << 11
LEAST_I, MOST_I = 1 << 6, 1 << 12
BANKS = 16  # of 64 bits
ALIGNED = 16  # what first neurons and inputs are multiples of, so that tiles are read by vectors
TOGETHER = 4  # connections that lie side by side in one lane


@dataclass(frozen=True)
class Buckets:
    """slot_BN   int32: (k * BLOCK_O + neuron) * block_i + input, counted from the first ones; -1 for none
    first_B2  int32: first neuron, first input
    """

    slot_BN: Tensor
    first_B2: Tensor
    block_i: int


def fits(k: int, inputs: int, dtype: torch.dtype) -> bool:
    """Whether `triton_buckets` is for such a layer: 16 bits, and a K above 4 that a slot has bits for."""
    most = (1 << 31) // (BLOCK_O * block_inputs(k, inputs)) - 1
    return dtype in triton_grad.ROW_DTYPES and triton_grad.ROWS_MOST_K < k <= most


def block_inputs(k: int, inputs: int, slots: int = SLOTS) -> int:
    """So many inputs that `BLOCK_O` neurons have about `slots` connections with them, a power of two."""
    wanted = slots * inputs / (k * BLOCK_O)
    nearest = 1 << max(0, round(math.log2(wanted)))
    return max(LEAST_I, min(MOST_I, nearest, triton_grad.power_of_2(inputs)))


def bucketed(index_OK: Tensor, inputs: int, slots: int = SLOTS) -> Buckets:
    """The connections of an index in buckets. It waits for the device; do it once per index.

    slots  of a program: a multiple of BANKS * TOGETHER
    """
    outputs, k = index_OK.shape
    block_i = block_inputs(k, inputs, slots)
    column_E = index_OK.reshape(-1).long()
    block_E, order_E = torch.sort(
        column_E // block_i, stable=True
    )  # within a block of inputs, neurons ascend
    neuron_E = order_E // k
    starts, firsts = _cut(block_E.cpu(), neuron_E.cpu(), slots)
    device = index_OK.device
    first_B2 = torch.stack([neuron_E[starts] // ALIGNED * ALIGNED, block_E[starts] * block_i], dim=1)
    sizes = torch.tensor([*starts[1:], outputs * k], device=device) - torch.tensor(starts, device=device)
    bucket_E = torch.repeat_interleave(torch.arange(firsts, device=device), sizes)
    local_o_E = neuron_E - first_B2[bucket_E, 0]
    local_i_E = column_E[order_E] - first_B2[bucket_E, 1]
    slot_E = (order_E % k * BLOCK_O + local_o_E) * block_i + local_i_E
    apart_E = _banks_apart(bucket_E, local_o_E, local_i_E)
    place_E = torch.arange(len(apart_E), device=device) - torch.tensor(starts, device=device)[bucket_E]
    slot_BN = torch.full((firsts, slots), -1, dtype=torch.int32, device=device)
    slot_BN[bucket_E, _lane(place_E)] = slot_E[apart_E].int()
    return Buckets(slot_BN, first_B2.int().contiguous(), block_i)


def _cut(block_E: Tensor, neuron_E: Tensor, slots: int) -> tuple[list[int], int]:
    """(where each bucket starts, how many): one block of inputs, BLOCK_O neurons and `slots` at most."""
    starts: list[int] = []
    ends = torch.cat([(block_E.diff() != 0).nonzero().flatten() + 1, torch.tensor([len(block_E)])]).tolist()
    at = 0
    for end in ends:
        while at < end:
            starts.append(at)
            beyond = torch.searchsorted(neuron_E[at:end], int(neuron_E[at]) // ALIGNED * ALIGNED + BLOCK_O)
            at = min(at + slots, at + int(beyond))
    return starts, len(starts)


def _banks_apart(bucket_E: Tensor, local_o_E: Tensor, local_i_E: Tensor) -> Tensor:
    """An order within each bucket in which 16 neighbours look up mostly different banks, on both sides.

    Those of 16 neurons side by side never share a bank of g but for the same word, in any order. Of them come
    first one connection for each bank of x, then a second for each, ...
    """
    bank_E = local_i_E % BANKS
    rows_E = bucket_E * (BLOCK_O // BANKS) + local_o_E // BANKS
    sorted_E, order_E = torch.sort(rows_E * BANKS + bank_E, stable=True)
    counted_E = torch.arange(len(sorted_E), device=sorted_E.device)
    new_E = torch.ones_like(sorted_E, dtype=torch.bool)
    new_E[1:] = sorted_E.diff() != 0
    turn_E = counted_E - torch.where(new_E, counted_E, 0).cummax(0).values  # the how manyth of its bank
    key_E = (sorted_E // BANKS * (int(turn_E.max()) + 1) + turn_E) * BANKS + sorted_E % BANKS
    return order_E[torch.argsort(key_E)]


def _lane(place_E: Tensor) -> Tensor:
    """Where in a program a place lies: 16 places after each other are in 16 lanes; each has TOGETHER."""
    block, within = place_E // (BANKS * TOGETHER), place_E % (BANKS * TOGETHER)
    return block * (BANKS * TOGETHER) + within % BANKS * TOGETHER + within // BANKS


class KeptBuckets:
    """The buckets of every index that is in use; an index that changed gets others."""

    def __init__(self) -> None:
        self._kept: MutableMapping[Tensor, tuple[int, Buckets]] = WeakIdKeyDictionary()

    def __call__(self, index_OK: Tensor, inputs: int) -> Buckets:
        kept = self._kept.get(index_OK)
        if kept is None or kept[0] != index_OK._version:
            kept = index_OK._version, bucketed(index_OK, inputs)
            self._kept[index_OK] = kept
        return kept[1]


kept_buckets = KeptBuckets()


def triton_buckets(
    grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor, buckets: Buckets | None = None, warps: int = WARPS
) -> Tensor:
    """The sampled gradient by buckets, fp32 `[O, K]`, of 16-bit inputs; ask `fits` first.

    buckets  of this index; None: those that are kept of it
    """
    (tokens, outputs), (inputs, k) = grad_TO.shape, (x_TI.shape[1], index_OK.shape[1])
    grad_TO, x_TI = triton_grad.rows_contiguous(grad_TO), triton_grad.rows_contiguous(x_TI)
    buckets = buckets or kept_buckets(index_OK, inputs)
    programs, slots = buckets.slot_BN.shape
    blocks = -(-tokens // triton_grad.PACK)
    parts, steps = triton_grad.split(blocks, programs, triton_grad.multiprocessors(grad_TO.device))
    out_POK = torch.empty(parts, outputs, k, dtype=torch.float32, device=grad_TO.device)
    triton_grad.kernels().buckets_kernel[(programs, parts)](
        grad_TO, x_TI, buckets.slot_BN, buckets.first_B2, out_POK, tokens, inputs, outputs, grad_TO.stride(0),
        x_TI.stride(0), blocks, steps, K=k, SLOTS=slots, BLOCK_O=BLOCK_O, BLOCK_I=buckets.block_i,
        PACK=triton_grad.PACK, num_warps=warps,
    )  # fmt: skip
    return out_POK[0] if parts == 1 else out_POK.sum(dim=0)
