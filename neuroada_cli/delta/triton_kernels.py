"""The CUDA kernels, in Triton (which comes with torch's CUDA builds). Import this only where there is Triton.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens, P = parts the tokens are split into

`triton_grad` and `triton_update` call them and say what each is for. Triton's interpreter runs this file on a
CPU (TRITON_INTERPRET=1), which is how it is tested where there is no GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit(do_not_specialize=["tokens"])
def transpose_kernel(
    x_ptr, xt_ptr, tokens, inputs, x_stride, xt_stride, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr
):
    """x[T, I] -> xt[I, xt_stride], zeros behind the last token. xt_stride is a multiple of BLOCK_T."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = (t < tokens)[:, None] & (i < inputs)[None, :]
    x_TI = tl.load(x_ptr + t.to(tl.int64)[:, None] * x_stride + i[None, :], mask=inside, other=0.0)
    xt = xt_ptr + i.to(tl.int64)[:, None] * xt_stride + t[None, :]
    tl.store(xt, tl.trans(x_TI), mask=(i < inputs)[:, None])


@triton.jit(do_not_specialize=["tokens", "blocks", "steps"])
def columns_kernel(
    g_ptr, xt_ptr, index_ptr, out_ptr, tokens, outputs, g_stride, xt_stride, blocks, steps,
    K: tl.constexpr, K_PAD: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK_O: tl.constexpr, LANE_T: tl.constexpr,
):  # fmt: skip
    """Sums over one part of the tokens for BLOCK_O neurons, out[P, O, K]; tokens lie side by side in xt.

    A tile is two times LANE_T tokens, which a warp spans: both halves are added up within each lane before
    the lanes are. (A third dimension would say the same; Triton 3.6 then lays the product out anew.) xt ends
    in zeros up to a whole tile, so that its loads need no mask.
    """
    part = tl.program_id(1)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    neuron = tl.minimum(o, outputs - 1)
    lane_T = tl.arange(0, LANE_T)
    ks = tl.arange(0, K_PAD)
    acc_OK = tl.zeros([BLOCK_O, K_PAD], dtype=tl.float32)
    for block in range(part * steps, tl.minimum(part * steps + steps, blocks)):
        t = block * (2 * LANE_T) + lane_T
        u = t + LANE_T
        g_t = g_ptr + t.to(tl.int64)[None, :] * g_stride + o[:, None]
        g_u = g_ptr + u.to(tl.int64)[None, :] * g_stride + o[:, None]
        g_OT = tl.load(g_t, mask=(o < outputs)[:, None] & (t < tokens)[None, :], other=0.0).to(tl.float32)
        g_OU = tl.load(g_u, mask=(o < outputs)[:, None] & (u < tokens)[None, :], other=0.0).to(tl.float32)
        for k in tl.range(0, K, loop_unroll_factor=UNROLL):
            column_O = tl.load(index_ptr + neuron * K + k).to(tl.int64)
            row = xt_ptr + column_O[:, None] * xt_stride
            x_OT = tl.load(row + t[None, :]).to(tl.float32)
            x_OU = tl.load(row + u[None, :]).to(tl.float32)
            sum_O = tl.sum(g_OT * x_OT + g_OU * x_OU, axis=1)
            acc_OK += tl.where((ks == k)[None, :], sum_O[:, None], 0.0)
    out = out_ptr + (part * outputs + o[:, None]) * K + ks[None, :]
    tl.store(out, acc_OK, mask=(o < outputs)[:, None] & (ks < K)[None, :])


@triton.jit
def _words(ptr, stride, column, columns, first, tokens, PACK: tl.constexpr):
    """The numbers of PACK tokens from `first` on, a 64-bit word for each column; 0 behind the last token."""
    word = tl.zeros(column.shape, dtype=tl.int64)
    for j in tl.static_range(PACK):
        real_token = tl.full([1], 0, tl.int64) + first + j < tokens
        number = tl.load(ptr + (first + j) * stride + column, mask=(column < columns) & real_token, other=0.0)
        word |= number.to(tl.uint16, bitcast=True).to(tl.int64) << (16 * j)
    return word


@triton.jit
def _number(word, j: tl.constexpr, TYPE: tl.constexpr):
    """Token j of a word, fp32. bf16 is the upper half of fp32, and a half of 32 bits is shifted at once."""
    half = (word >> (32 * (j // 2))).to(tl.int32)
    if tl.bfloat16 == TYPE:
        return (half << 16 if j % 2 == 0 else half & -65536).to(tl.float32, bitcast=True)
    return (half >> (16 * (j % 2))).to(tl.uint16).to(TYPE, bitcast=True).to(tl.float32)


@triton.jit(do_not_specialize=["tokens", "blocks", "steps"])
def rows_kernel(
    g_ptr, x_ptr, index_ptr, out_ptr, tokens, inputs, outputs, g_stride, x_stride, blocks, steps,
    K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    PACK: tl.constexpr,
):  # fmt: skip
    """Sums over one part of the tokens for BLOCK_O neurons and BLOCK_K of their k, out[P, O, K].

    PACK tokens at a time: their numbers for one input are packed into one word, so that one look-up in
    shared memory brings PACK of them. x is read as it lies. 16-bit types; BLOCK_I is at least I.
    """
    part = tl.program_id(1)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    k = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    i = tl.arange(0, BLOCK_I)
    real = (k < K)[:, None] & (o < outputs)[None, :]
    index_KO = tl.load(index_ptr + o[None, :] * K + k[:, None], mask=real, other=0)
    index_N = tl.reshape(index_KO, [BLOCK_K * BLOCK_O])
    acc_KO = tl.zeros([BLOCK_K, BLOCK_O], dtype=tl.float32)
    zero = tl.full([], 0, tl.int64)
    for block in range(part * steps, tl.minimum(part * steps + steps, blocks)):
        first = zero + block * PACK  # 64 bits: T x I may need them
        word_I = _words(x_ptr, x_stride, i, inputs, first, tokens, PACK)
        g_word_O = _words(g_ptr, g_stride, o, outputs, first, tokens, PACK)
        word_KO = tl.reshape(tl.gather(word_I, index_N, 0), [BLOCK_K, BLOCK_O])
        for j in tl.static_range(PACK):
            g_O = _number(g_word_O, j, g_ptr.dtype.element_ty)
            acc_KO += g_O[None, :] * _number(word_KO, j, x_ptr.dtype.element_ty)
    out = out_ptr + (part * outputs + o[None, :]) * K + k[:, None]
    tl.store(out, acc_KO, mask=real)


@triton.jit(do_not_specialize=["tokens", "blocks", "steps"])
def buckets_kernel(
    g_ptr, x_ptr, slot_ptr, first_ptr, out_ptr, tokens, inputs, outputs, g_stride, x_stride, blocks, steps,
    K: tl.constexpr, SLOTS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """Sums over one part of the tokens for the connections of one bucket, into out[P, O, K].

    slot_ptr   int32 [B, SLOTS]: (k * BLOCK_O + neuron) * BLOCK_I + input, or -1
    first_ptr  int32 [B, 2]: what neuron and input are counted from, multiples of 16
    PACK tokens in a word as in `rows_kernel`, of x and of g: both sides of a connection are looked up. The
    next words are read while these are worked on.
    """
    bucket = tl.program_id(0)
    part = tl.program_id(1)
    slot_N = tl.load(slot_ptr + bucket * SLOTS + tl.arange(0, SLOTS))
    above_N = slot_N.to(tl.uint32, bitcast=True) // BLOCK_I  # without a sign it is one shift
    first_o = tl.multiple_of(tl.load(first_ptr + 2 * bucket), 16)
    i = tl.multiple_of(tl.load(first_ptr + 2 * bucket + 1), 16) + tl.arange(0, BLOCK_I)
    o = first_o + tl.arange(0, BLOCK_O)
    acc_N = tl.zeros([SLOTS], dtype=tl.float32)
    zero = tl.full([], 0, tl.int64)
    word_I = _words(x_ptr, x_stride, i, inputs, zero + part * steps * PACK, tokens, PACK)
    g_word_O = _words(g_ptr, g_stride, o, outputs, zero + part * steps * PACK, tokens, PACK)
    for block in range(part * steps, tl.minimum(part * steps + steps, blocks)):
        word_N = tl.gather(word_I, slot_N & (BLOCK_I - 1), 0)
        g_word_N = tl.gather(g_word_O, (above_N & (BLOCK_O - 1)).to(tl.int32), 0)
        word_I = _words(x_ptr, x_stride, i, inputs, zero + (block + 1) * PACK, tokens, PACK)
        g_word_O = _words(g_ptr, g_stride, o, outputs, zero + (block + 1) * PACK, tokens, PACK)
        for j in tl.static_range(PACK):
            g_N = _number(g_word_N, j, g_ptr.dtype.element_ty)
            acc_N += g_N * _number(word_N, j, x_ptr.dtype.element_ty)
    neuron_N = first_o + (above_N & (BLOCK_O - 1)).to(tl.int64)
    out_N = out_ptr + (part * outputs + neuron_N) * K + (above_N // BLOCK_O).to(tl.int64)
    tl.store(out_N, acc_N, mask=slot_N >= 0)


@triton.jit(do_not_specialize=["layers"])
def update_kernel(
    table_ptr, settings_ptr, norm_ptr, layers,
    UPDATES: tl.constexpr, CLIPS: tl.constexpr, WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk of one layer's deltas: clip and AdamW (with UPDATES), then W = round(base + delta).

    table_ptr     int64 [layers, 15]: `triton_update.COLUMNS`
    settings_ptr  fp64 [groups, 8]: `triton_update.SETTINGS`;  norm_ptr: fp32, the norm of all gradients
    """
    row = table_ptr + tl.program_id(1) * 15
    numbers = tl.load(row + 8)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numbers
    delta_ptr = tl.load(row + 3).to(tl.pointer_type(tl.float32)) + i
    delta = tl.load(delta_ptr, mask=inside, other=0.0)
    if UPDATES:
        settings = settings_ptr + tl.load(row + 14) * 8
        rate = tl.load(settings)
        left_1 = tl.load(settings + 1)  # 1 - beta
        left_2 = tl.load(settings + 2)
        eps = tl.load(settings + 5).to(tl.float32)
        decay = (rate * tl.load(settings + 6)).to(tl.float32)
        taken = tl.load(tl.load(row + 7).to(tl.pointer_type(tl.float32))).to(tl.float64)
        unbiased_1 = 1.0 - tl.exp(taken * tl.load(settings + 3))  # 1 - beta ** step
        unbiased_2 = tl.sqrt(1.0 - tl.exp(taken * tl.load(settings + 4))).to(tl.float32)
        grad = tl.load(tl.load(row + 4).to(tl.pointer_type(tl.float32)) + i, mask=inside, other=0.0)
        if CLIPS:
            limit = tl.load(settings + 7).to(tl.float32)
            grad *= tl.minimum(limit / (tl.load(norm_ptr) + 1e-6), 1.0)
        first_ptr = tl.load(row + 5).to(tl.pointer_type(tl.float32)) + i
        second_ptr = tl.load(row + 6).to(tl.pointer_type(tl.float32)) + i
        first = tl.load(first_ptr, mask=inside, other=0.0)
        second = tl.load(second_ptr, mask=inside, other=0.0)
        first += left_1.to(tl.float32) * (grad - first)
        second = (1.0 - left_2).to(tl.float32) * second + left_2.to(tl.float32) * grad * grad
        delta -= decay * delta
        delta -= (rate / unbiased_1).to(tl.float32) * first / (tl.sqrt(second) / unbiased_2 + eps)
        tl.store(first_ptr, first, mask=inside)
        tl.store(second_ptr, second, mask=inside)
        tl.store(delta_ptr, delta, mask=inside)
    outputs = tl.load(row + 10).to(tl.int32)
    neuron = i // tl.load(row + 9).to(tl.int32)
    expert = neuron // outputs
    column = tl.load(tl.load(row + 1).to(tl.pointer_type(tl.int32)) + i, mask=inside, other=0).to(tl.int64)
    base = tl.load(tl.load(row + 2).to(tl.pointer_type(WEIGHT)) + i, mask=inside, other=0.0).to(tl.float32)
    place = expert * tl.load(row + 11) + (neuron - expert * outputs) * tl.load(row + 12)
    weight_ptr = tl.load(row).to(tl.pointer_type(WEIGHT)) + place + column * tl.load(row + 13)
    tl.store(weight_ptr, (base + delta).to(WEIGHT), mask=inside)
