"""The CUDA kernel of the sampled gradient, in Triton (which comes with torch's CUDA builds).

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens, P = parts the tokens are split into

    out_ok = sum_t g_to x_{t,index_ok}

Every program owns BLOCK_O neurons and one part of the tokens. It loads a tile of g once (transposed while it
is loaded), then for each k the chosen rows of x^T: tokens lie side by side there, so each row is a
coalesced read, mostly from L2. Sums are fp32. The parts are added in a fixed order afterwards: no atomics, so
results are the same bits every time.

x^T is made once for all projections that read the same x (q, k, v; gate, up). Triton's interpreter runs this
file on a CPU (TRITON_INTERPRET=1), which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

BLOCK_O, BLOCK_T, WARPS = 8, 256, 4
PROGRAMS_WANTED = 1056  # eight for each of an H100's 132 multiprocessors


def available(device: torch.device) -> bool:
    """Whether the kernel can run on this device: CUDA with Triton installed."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


@functools.cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def sampled_grad_kernel(  # type: ignore[no-untyped-def]
        g_ptr, xt_ptr, index_ptr, out_ptr, tokens, outputs, g_stride, xt_stride,
        STEPS: tl.constexpr, K: tl.constexpr, K_PAD: tl.constexpr,
        BLOCK_O: tl.constexpr, BLOCK_T: tl.constexpr,
    ):  # fmt: skip
        part = tl.program_id(1)
        o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
        o_inside = o < outputs
        ks = tl.arange(0, K_PAD)
        acc_OK = tl.zeros([BLOCK_O, K_PAD], dtype=tl.float32)
        for step in range(STEPS):
            t = (part * STEPS + step) * BLOCK_T + tl.arange(0, BLOCK_T)
            inside = o_inside[:, None] & (t < tokens)[None, :]
            g_OT = tl.load(g_ptr + t[None, :].to(tl.int64) * g_stride + o[:, None], mask=inside, other=0.0)
            g_OT = g_OT.to(tl.float32)
            for k in range(K):
                column_O = tl.load(index_ptr + o * K + k, mask=o_inside, other=0).to(tl.int64)
                x_OT = tl.load(xt_ptr + column_O[:, None] * xt_stride + t[None, :], mask=inside, other=0.0)
                sum_O = tl.sum(g_OT * x_OT.to(tl.float32), axis=1)
                acc_OK += tl.where((ks == k)[None, :], sum_O[:, None], 0.0)
        out = out_ptr + (part * outputs + o[:, None]) * K + ks[None, :]
        tl.store(out, acc_OK, mask=o_inside[:, None] & (ks < K)[None, :])

    return sampled_grad_kernel


class _LastTranspose:
    """x^T of the last x asked for. Holds x itself, so its memory cannot be handed to another tensor."""

    def __init__(self) -> None:
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
            self.x_IT = x_TI.T.contiguous()
            self.x_TI, self.version = x_TI, x_TI._version
        return self.x_IT

    def clear(self) -> None:
        self.x_TI = self.x_IT = None


last_transpose = _LastTranspose()


def split_tokens(
    tokens: int, outputs: int, block_o: int = BLOCK_O, block_t: int = BLOCK_T
) -> tuple[int, int]:
    """(parts, steps per part): enough programs to fill the GPU, steps a power of two (few compilations)."""
    neuron_blocks = -(-outputs // block_o)
    token_blocks = -(-tokens // block_t)
    parts_wanted = max(1, PROGRAMS_WANTED // neuron_blocks)
    steps = 1
    while steps * parts_wanted < token_blocks:
        steps *= 2
    return -(-token_blocks // steps), steps


def triton_grad(
    grad_TO: Tensor,
    x_TI: Tensor,
    index_OK: Tensor,
    block_o: int = BLOCK_O,
    block_t: int = BLOCK_T,
    warps: int = WARPS,
) -> Tensor:
    """The sampled gradient, fp32 `[O, K]`. Inputs of any float dtype on a CUDA device.

    block_o, block_t, warps  the tile of one program; `benchmarks/gpu.py` measures them
    """
    (tokens, outputs), k = grad_TO.shape, index_OK.shape[1]
    grad_TO = grad_TO if grad_TO.stride(1) == 1 else grad_TO.contiguous()
    x_IT = last_transpose(x_TI)
    parts, steps = split_tokens(tokens, outputs, block_o, block_t)
    out_POK = torch.empty(parts, outputs, k, dtype=torch.float32, device=grad_TO.device)
    _kernel()[(-(-outputs // block_o), parts)](
        grad_TO, x_IT, index_OK.contiguous(), out_POK, tokens, outputs, grad_TO.stride(0), x_IT.stride(0),
        STEPS=steps, K=k, K_PAD=1 << (k - 1).bit_length(), BLOCK_O=block_o, BLOCK_T=block_t, num_warps=warps,
    )  # fmt: skip
    return out_POK[0] if parts == 1 else out_POK.sum(dim=0)
