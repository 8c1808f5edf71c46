"""Products of bf16 and fp16 tensors on processors that torch has no quick ones for.

On x86 torch multiplies 16-bit floats quickly only where oneDNN takes them: bf16 with AVX-512, fp16 with its
fp16 instructions. Everywhere else, which is most desktops and laptops, it goes number by number: 5 to 200
times slower than the same product of fp32 tensors, worst for the gradient of a layer's inputs (`g @ W`).
There the operands are widened to fp32 tile by tile, multiplied as fp32, and the result is rounded once: the
same sums, kept in fp32 as torch keeps them, in another order. The weights stay 16 bits wide, and the tiles
bound what is widened at a time.

torch's kernels are replaced for the whole process, as `torch.library.get_kernel` is meant for; fp32 and
everything that is not on a CPU goes to the kernel that was there before.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

TILE = 2**19  # numbers of one operand that are widened at a time: 2 MiB as fp32, which the caches hold
FEW = 8  # rows up to which torch's own product with a transposed weight is as quick: it reads half the bytes
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu_backward"  # its forward pass is quick as it is

Kernel = Callable[..., Any]
_registered: torch.library.Library | None = None
_slow: frozenset[torch.dtype] = frozenset()
_original: dict[str, Any] = {}


def slow_here() -> frozenset[torch.dtype]:
    """The 16-bit types whose products torch computes number by number on this processor; none where it is
    not x86, since nothing was measured there."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    supported = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    return frozenset(
        dtype for dtype, ask in supported.items() if not getattr(torch.ops.mkldnn, ask, lambda: True)()
    )


def prepare(device: str | torch.device, dtype: torch.dtype) -> None:
    """Call it before a model of this type computes there: its products will be quick."""
    if torch.device(device).type == "cpu":
        widen(slow_here() & {dtype})


def widen(dtypes: frozenset[torch.dtype]) -> None:
    """From now on products of tensors of these types on the CPU, convolutions and the gradient of attention
    are computed by way of fp32. What an earlier call named stays."""
    global _registered, _slow
    if dtypes and _registered is None:
        _registered = _register()
    _slow |= dtypes


@contextmanager
def as_torch_does() -> Iterator[None]:
    """Within it nothing is widened: to measure what widening brings."""
    global _slow
    before, _slow = _slow, frozenset()
    try:
        yield
    finally:
        _slow = before


def _register() -> torch.library.Library:
    ours: dict[str, Kernel] = {
        "mm": _mm, "mm.out": _mm_out, "addmm": _addmm, "addmm.out": _addmm_out,
        "bmm": _bmm, "bmm.out": _bmm_out, "baddbmm": _baddbmm, "baddbmm.out": _baddbmm_out,
        "convolution": _whole("convolution"), "convolution_backward": _whole("convolution_backward"),
        ATTENTION: _whole(ATTENTION),
    }  # fmt: skip
    for name in ours:  # all of them before the first is replaced: one may be what another calls
        _original[name] = torch.library.get_kernel(f"aten::{name}", "CPU")
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a kernel is replaced, which is the purpose
        for name, kernel in ours.items():
            library.impl(name, kernel, "CPU", with_keyset=True)  # type: ignore[no-untyped-call]
    return library


def _ours(a: Tensor, b: Tensor, *others: Tensor) -> bool:
    """Whether these are what is widened; anything amiss with them the original is to say."""
    if a.dtype not in _slow or a.dim() != b.dim() or any(t.dtype != a.dtype for t in (b, *others)):
        return False
    return a.numel() > 0 and b.numel() > 0 and a.shape[-1] == b.shape[-2]


def _few(a: Tensor, b: Tensor) -> bool:
    """A few rows times a transposed weight, as when one token per row is decoded."""
    return a.shape[0] <= FEW and b.stride(0) == 1


def _call(name: str, keys: Any, *given: Any, **named: Any) -> Any:
    return _original[name].call_boxed(keys, *given, **named)


def _tiles(keys: Any, a_MK: Tensor, b_KN: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and fp32 values of parts of the product, cut along its longest dimension."""
    M, K, N = *a_MK.shape, b_KN.shape[1]
    everything = slice(None)
    if max(M * K, K * N) <= TILE:
        yield everything, everything, _call("mm", keys, a_MK.float(), b_KN.float())
    elif max(M, N) <= K:
        sum_MN = a_MK.new_zeros(M, N, dtype=torch.float32)
        for part in _parts(K, M + N):
            a, b = a_MK[:, part].float(), b_KN[part].float()
            _call("addmm.out", keys, sum_MN, a, b, beta=1, alpha=1, out=sum_MN)
        yield everything, everything, sum_MN
    elif N >= M:
        a = a_MK.float()
        for part in _parts(N, K):
            yield everything, part, _call("mm", keys, a, b_KN[:, part].float())
    else:
        b = b_KN.float()
        for part in _parts(M, K):
            yield part, everything, _call("mm", keys, a_MK[part].float(), b)


def _parts(length: int, numbers: int) -> Iterator[slice]:
    """Of a dimension of which one step is that many numbers."""
    step = max(1, TILE // numbers)
    return (slice(start, start + step) for start in range(0, length, step))


def _mm(keys: Any, a: Tensor, b: Tensor) -> Tensor:
    if not _ours(a, b) or _few(a, b):
        return _call("mm", keys, a, b)  # type: ignore[no-any-return]
    return _fill(keys, a.new_empty(a.shape[0], b.shape[1]), a, b)


def _mm_out(keys: Any, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    if not _ours(a, b, out) or _few(a, b) or out.shape != (a.shape[0], b.shape[1]):
        return _call("mm.out", keys, a, b, out=out)  # type: ignore[no-any-return]
    return _fill(keys, out, a, b)


def _fill(keys: Any, out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    for rows, columns, values in _tiles(keys, a, b):
        out[rows, columns].copy_(values)
    return out


def _addmm(keys: Any, added: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    if not _ours(a, b, added) or _few(a, b):
        return _call("addmm", keys, added, a, b, beta=beta, alpha=alpha)  # type: ignore[no-any-return]
    return _fill_with(keys, a.new_empty(a.shape[0], b.shape[1]), added, a, b, beta, alpha)


def _addmm_out(
    keys: Any, added: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1, out: Tensor
) -> Tensor:
    if not _ours(a, b, added, out) or _few(a, b) or out.shape != (a.shape[0], b.shape[1]):
        return _call("addmm.out", keys, added, a, b, beta=beta, alpha=alpha, out=out)  # type: ignore[no-any-return]
    return _fill_with(keys, out, added, a, b, beta, alpha)


def _fill_with(keys: Any, out: Tensor, added: Tensor, a: Tensor, b: Tensor, beta: Any, alpha: Any) -> Tensor:
    added = added.expand(out.shape)
    for rows, columns, values in _tiles(keys, a, b):
        out[rows, columns].copy_(_sum(added[rows, columns], values, beta, alpha))
    return out


def _sum(added: Tensor, values: Tensor, beta: Any, alpha: Any) -> Tensor:
    """fp32; where beta is 0 what is added counts for nothing, NaN neither."""
    values = values if alpha == 1 else values * alpha
    return values if beta == 0 else torch.add(values, added.float(), alpha=beta)


def _batches(keys: Any, a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Of a batch of products so many at a time as fill a tile."""
    for part in _parts(a.shape[0], max(a[0].numel(), b[0].numel())):
        yield part, _call("bmm", keys, a[part].float(), b[part].float())


def _bmm(keys: Any, a: Tensor, b: Tensor) -> Tensor:
    if not _ours(a, b) or a.shape[0] != b.shape[0]:
        return _call("bmm", keys, a, b)  # type: ignore[no-any-return]
    return _fill_batches(keys, a.new_empty(a.shape[0], a.shape[1], b.shape[2]), a, b)


def _bmm_out(keys: Any, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    fits = a.shape[0] == b.shape[0] and out.shape == (a.shape[0], a.shape[1], b.shape[2])
    if not fits or not _ours(a, b, out):
        return _call("bmm.out", keys, a, b, out=out)  # type: ignore[no-any-return]
    return _fill_batches(keys, out, a, b)


def _fill_batches(keys: Any, out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    for part, values in _batches(keys, a, b):
        out[part].copy_(values)
    return out


def _baddbmm(keys: Any, added: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    if not _ours(a, b, added) or a.shape[0] != b.shape[0]:
        return _call("baddbmm", keys, added, a, b, beta=beta, alpha=alpha)  # type: ignore[no-any-return]
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return _fill_batches_with(keys, out, added, a, b, beta, alpha)


def _baddbmm_out(
    keys: Any, added: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1, out: Tensor
) -> Tensor:
    fits = a.shape[0] == b.shape[0] and out.shape == (a.shape[0], a.shape[1], b.shape[2])
    if not fits or not _ours(a, b, added, out):
        return _call("baddbmm.out", keys, added, a, b, beta=beta, alpha=alpha, out=out)  # type: ignore[no-any-return]
    return _fill_batches_with(keys, out, added, a, b, beta, alpha)


def _fill_batches_with(
    keys: Any, out: Tensor, added: Tensor, a: Tensor, b: Tensor, beta: Any, alpha: Any
) -> Tensor:
    added = added.expand(out.shape)
    for part, values in _batches(keys, a, b):
        out[part].copy_(_sum(added[part], values, beta, alpha))
    return out


def _whole(name: str) -> Kernel:
    """An op that is computed with all of its 16-bit tensors widened and its results rounded."""

    def kernel(keys: Any, *given: Any, **named: Any) -> Any:
        dtype = next(value.dtype for value in given if isinstance(value, Tensor))
        if dtype not in _slow:
            return _call(name, keys, *given, **named)
        widened = [_widened(value) for value in given]
        results = _call(name, keys, *widened, **{key: _widened(value) for key, value in named.items()})
        if isinstance(results, Tensor):
            return results.to(dtype)
        return tuple(None if result is None else result.to(dtype) for result in results)

    return kernel


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _slow else value
