"""The sampled gradient on CUDA, in two ways: by columns of x^T for any K, by rows of x for a small one.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens, P = parts the tokens are split into

    out_ok = sum_t g_to x_{t,index_ok}

**By columns** every program owns a few neurons and one part of the tokens. It loads a tile of g once
(transposed while it is loaded), then for each k the chosen rows of x^T: tokens lie side by side there, so
each is a coalesced read of 16 bytes per lane, mostly from L2. x^T is made once for all projections that read
the same x (q, k, v; gate, up), filled up with zeros to whole tiles: no token count makes its loads narrow.

**By rows** every program owns thousands of neurons and keeps their sums in registers. A few tokens of x are
put into shared memory, four tokens of one input in a word, and looked up there; nothing is transposed. It
reads K x O / 8192 times all of x, so it is for a small K; for 16-bit types, and rows of x that fit.

Sums are fp32. The parts are added in a fixed order afterwards: no atomics, so results are the same bits every
time. `triton_kernels` holds the kernels.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROW_DTYPES = (torch.bfloat16, torch.float16)
ROW_INPUTS = 1 << 14  # most inputs of the way by rows: a word for each is 128 KB of shared memory
ROWS_MOST_K = 4
SUMS = 1 << 13  # of one program by rows
PACK = 4  # tokens in a word
TRANSPOSE_T, TRANSPOSE_I = 128, 64
MULTIPROCESSORS = 132  # of an H100; what is assumed where no device tells


@dataclass(frozen=True)
class Tile:
    """Of one program by columns. registers: the most of a thread.

    resident  programs that one multiprocessor holds then
    """

    neurons: int = 8
    warps: int = 4
    registers: int = 80

    @property
    def resident(self) -> int:
        return (64 << 10) // (self.registers * 32 * self.warps)


TILE = Tile()
TILE_T = 512  # tokens at a time by columns: two for each of 16 bytes per lane of a warp, in 16-bit types
ROW_WARPS = 16


def available(device: torch.device) -> bool:
    """Whether the kernels can run on this device: CUDA with Triton installed."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


@functools.cache
def rows_fit(inputs: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `triton_rows` can take a layer of so many inputs on this device."""
    if dtype not in ROW_DTYPES or inputs > ROW_INPUTS:
        return False
    if device.type != "cuda":
        return True
    about = torch.cuda.get_device_properties(device)
    shared = getattr(about, "shared_memory_per_block_optin", about.shared_memory_per_block)
    return power_of_2(inputs) * 8 <= int(shared)


@functools.cache
def kernels() -> Any:
    from neuroada_cli.delta import triton_kernels

    return triton_kernels


class LastTranspose:
    """x^T of the last x asked for. Holds x itself, so its memory cannot be handed to another tensor."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        self._make = make
        self.x_TI: Tensor | None = None
        self.version = -1
        self.x_IT: Tensor | None = None

    def __call__(self, x_TI: Tensor) -> Tensor:
        held = self.x_TI
        same = (
            held is not None
            and held.data_ptr() == x_TI.data_ptr()
            and held.shape == x_TI.shape
            and held.stride() == x_TI.stride()
            and held.dtype == x_TI.dtype
            and self.version == x_TI._version
        )
        if not same or self.x_IT is None:
            self.x_IT = None  # before the next one is made, so that two never stand side by side
            self.x_IT = self._make(x_TI)
            self.x_TI, self.version = x_TI, x_TI._version
        return self.x_IT

    def clear(self) -> None:
        self.x_TI = self.x_IT = None


def transposed(x_TI: Tensor) -> Tensor:
    """x^T [I, T filled up with zeros to a multiple of TILE_T]."""
    tokens, inputs = x_TI.shape
    x_TI = rows_contiguous(x_TI)
    x_IT = torch.empty(inputs, -(-tokens // TILE_T) * TILE_T, dtype=x_TI.dtype, device=x_TI.device)
    kernels().transpose_kernel[(x_IT.shape[1] // TRANSPOSE_T, -(-inputs // TRANSPOSE_I))](
        x_TI, x_IT, tokens, inputs, x_TI.stride(0), x_IT.stride(0), BLOCK_T=TRANSPOSE_T, BLOCK_I=TRANSPOSE_I
    )
    return x_IT


last_transpose = LastTranspose(transposed)


def split(blocks: int, others: int, slots: int) -> tuple[int, int]:
    """(parts, blocks of tokens per part), so that the last round of programs is nearly full, too.

    blocks  of tokens;  others: programs for each part;  slots: programs that run at once
    Of the fewest parts, since each is written and added up.
    """
    best, best_share = (1, blocks), 0.0
    for wanted in range(1, min(blocks, max(1, 4 * slots // others)) + 1):
        steps = -(-blocks // wanted)
        parts = -(-blocks // steps)
        rounds = -(-parts * others // slots)
        share = blocks * others / (rounds * slots * steps)  # of the time that the slots have
        if share > best_share + 0.02:
            best, best_share = (parts, steps), share
    return best


@functools.cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def triton_grad(
    grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor, tile: Tile = TILE, x_IT: Tensor | None = None
) -> Tensor:
    """The sampled gradient by columns, fp32 `[O, K]`. Inputs of any float dtype on a CUDA device.

    tile  of one program; `benchmarks/gpu.py` measures some
    x_IT  `transposed(x_TI)`; None: the one that is kept of the last x
    """
    (tokens, outputs), k = grad_TO.shape, index_OK.shape[1]
    grad_TO = rows_contiguous(grad_TO)
    x_IT = last_transpose(x_TI) if x_IT is None else x_IT
    blocks = -(-tokens // TILE_T)
    neuron_blocks = -(-outputs // tile.neurons)
    parts, steps = split(blocks, neuron_blocks, tile.resident * multiprocessors(grad_TO.device))
    out_POK = torch.empty(parts, outputs, k, dtype=torch.float32, device=grad_TO.device)
    kernels().columns_kernel[(neuron_blocks, parts)](
        grad_TO, x_IT, index_OK.contiguous(), out_POK, tokens, outputs, grad_TO.stride(0), x_IT.stride(0),
        blocks, steps, K=k, K_PAD=power_of_2(k), UNROLL=unrolled(k), BLOCK_O=tile.neurons,
        LANE_T=TILE_T // 2, num_warps=tile.warps, **_limit(tile, grad_TO.device),
    )  # fmt: skip
    return out_POK[0] if parts == 1 else out_POK.sum(dim=0)


def unrolled(k: int) -> int:
    """How many k are in flight: of more, where they are few or some are left over, the compiler spills."""
    return 4 if k >= 8 and k % 4 == 0 else min(k, 2)


def triton_rows(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor) -> Tensor:
    """The sampled gradient by rows, fp32 `[O, K]`, of 16-bit inputs; ask `rows_fit` first."""
    (tokens, outputs), (inputs, k) = grad_TO.shape, (x_TI.shape[1], index_OK.shape[1])
    grad_TO, x_TI = rows_contiguous(grad_TO), rows_contiguous(x_TI)
    block_k = min(power_of_2(k), ROWS_MOST_K)
    block_o = min(power_of_2(outputs), SUMS // max(2, block_k))
    grid_o, grid_k = -(-outputs // block_o), -(-k // block_k)
    blocks = -(-tokens // PACK)
    parts, steps = split(blocks, grid_o * grid_k, multiprocessors(grad_TO.device))
    out_POK = torch.empty(parts, outputs, k, dtype=torch.float32, device=grad_TO.device)
    kernels().rows_kernel[(grid_o, parts, grid_k)](
        grad_TO, x_TI, index_OK.contiguous(), out_POK, tokens, inputs, outputs, grad_TO.stride(0),
        x_TI.stride(0), blocks, steps, K=k, BLOCK_K=block_k, BLOCK_O=block_o, BLOCK_I=power_of_2(inputs),
        PACK=PACK, num_warps=ROW_WARPS,
    )  # fmt: skip
    return out_POK[0] if parts == 1 else out_POK.sum(dim=0)


def _limit(tile: Tile, device: torch.device) -> dict[str, int]:
    """Triton's interpreter takes no such option."""
    return {"maxnreg": tile.registers} if device.type == "cuda" else {}


def rows_contiguous(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def power_of_2(number: int) -> int:
    """The next one that is at least `number`."""
    return 1 << (number - 1).bit_length()
