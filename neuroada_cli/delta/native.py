"""The CPU kernels: compiled once per machine, absent where there is no C compiler.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens

The sources in `kernels/` are compiled by the machine's own `cc` into the cache folder at first use (a second
or two). The library is linked against no OpenMP of its own: the symbols resolve to the runtime that torch has
loaded, so both share one thread pool. Without a compiler, or where that runtime is not visible, `available()`
is False and torch's own operations serve.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli import stopping
from neuroada_cli.delta.layout import Layout
from neuroada_cli.machine.cache import cache_folder
from neuroada_cli.machine.processor import cpu_lines, cpu_name

SOURCES = sorted((Path(__file__).parent / "kernels").glob("*.c"))
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp"]
VECTOR = 64  # bytes, as BYTES in sampled_grad.c
LONGEST = 1024  # bytes of a column of tokens at a time, as MOST there
BLOCK_BYTES = 1 << 20  # of x's columns at a time: what a second-level cache holds
SHARED_BYTES = 64 << 20  # of the columns of a whole x that are kept for the next layer


def _cpu() -> str:
    """What -march=native depends on: a library built on one machine must not be loaded on another."""
    return "".join(sorted(set(cpu_lines("model name", "flags")))) or cpu_name() + platform.machine()


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("NEUROADA_NATIVE") == "0" or compiler is None:
        return None
    here = None if os.name == "nt" else ctypes.CDLL(None)  # Windows wants a name
    if not hasattr(here, "GOMP_parallel"):  # torch's thread pool is not visible to us
        return None
    sources = [source.read_text() for source in SOURCES]
    key = hashlib.sha256("\n".join([*sources, *FLAGS, compiler, _cpu()]).encode()).hexdigest()
    library = cache_folder() / f"kernels-{key[:16]}.so"
    try:
        if not library.exists():
            _compile(compiler, library)
        loaded = ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None
    pointer, stride, number = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
    for name in ("sampled_grad_f32", "sampled_grad_bf16"):
        matrices = [pointer, stride, pointer, stride, pointer]
        getattr(loaded, name).argtypes = [*matrices, *[number] * 7, pointer, pointer]
    for name in ("top_k_16", "top_k_32"):
        getattr(loaded, name).argtypes = [pointer, stride, number, number, number, pointer]
    loaded.fold.argtypes = [pointer, number]
    loaded.take.argtypes = [pointer]
    for name in ("sampled_grad_f32", "sampled_grad_bf16", "fold", "take"):
        getattr(loaded, name).restype = None
    for name in ("top_k_16", "top_k_32"):
        getattr(loaded, name).restype = ctypes.c_uint32
    return loaded


def _compile(compiler: str, library: Path) -> None:
    """Build beside the final name and rename, so that processes racing here all find a whole file."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as folder, _tidied(folder):
        built = Path(folder) / "kernels.so"
        run = functools.partial(subprocess.run, check=True, capture_output=True, timeout=120, cwd=folder)
        run([compiler, *FLAGS, "-c", *map(str, SOURCES)])
        unlinked = sorted(file.name for file in Path(folder).glob("*.o"))
        run([compiler, "-shared", *unlinked, "-o", str(built)])  # without -fopenmp: no second runtime
        os.replace(built, library)


def _tidied(folder: str) -> stopping.tidied:
    return stopping.tidied(lambda: shutil.rmtree(folder, ignore_errors=True))


# ---------------------------------------------------------------------------------------------------
# The sampled gradient

GRADIENT = {torch.float32: "sampled_grad_f32", torch.bfloat16: "sampled_grad_bf16"}


def available(dtype: torch.dtype) -> bool:
    """Whether the sampled gradient can run here; compiles it on the first call."""
    return dtype in GRADIENT and _library() is not None


class _LastColumns(threading.local):
    """The columns of the last x. Holds x itself, so that its memory cannot be handed to another tensor.

    Layers that read one x (q, k, v; gate, up) ask one after another. Which layer is the first of several is
    learnt as it happens, so that nobody keeps what nobody else asks for.
    """

    def __init__(self) -> None:
        self.x_TI: Tensor | None = None
        self.version = self.place = self.first = 0
        self.columns: Tensor | None = None
        self.shared: set[int] = set()
        self.scratch: dict[torch.dtype, Tensor] = {}

    def of(self, x_TI: Tensor, asker: int, block: int) -> tuple[int, bool, bool]:
        """(address of room for the columns, whether of all of x, whether they are there already)."""
        held, place = self.x_TI, x_TI.data_ptr()
        if held is not None and self.place == place and self._is(held, x_TI):
            self.shared.add(self.first)
            if self.columns is not None:
                return self.columns.data_ptr(), True, True
        else:
            self.columns, self.x_TI, self.version = None, x_TI, x_TI._version
            self.place, self.first = place, asker
        (tokens, inputs), dtype = x_TI.shape, x_TI.dtype
        if self.first in self.shared and x_TI.nbytes <= SHARED_BYTES:
            self.columns = torch.empty((tokens + VECTOR // dtype.itemsize) * inputs, dtype=dtype)
            return self.columns.data_ptr(), True, False
        room = self.scratch.get(dtype)
        if room is None or len(room) < block * inputs:
            room = self.scratch[dtype] = torch.empty(block * inputs, dtype=dtype)
        return room.data_ptr(), False, False

    def _is(self, held: Tensor, x_TI: Tensor) -> bool:
        same = self.version == x_TI._version and held.dtype == x_TI.dtype
        return same and held.shape == x_TI.shape and held.stride() == x_TI.stride()

    def clear(self) -> None:
        self.x_TI = self.columns = None


last_columns = _LastColumns()


@functools.cache
def _kernel(dtype: torch.dtype) -> Any:
    library = _library()
    if dtype not in GRADIENT:
        raise ValueError(f"the native kernel takes fp32 or bf16 on the CPU, not {dtype}")
    if library is None:
        raise RuntimeError("the native kernel needs a C compiler (cc) and torch's OpenMP runtime")
    return getattr(library, GRADIENT[dtype])


def native(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor) -> Tensor:
    """The sampled gradient in fp32; inputs fp32 or bf16 (both the same), sums in fp32.

    Raises ValueError for another device or dtype, RuntimeError where the kernel is not available.
    """
    if grad_TO.device.type != "cpu":
        raise ValueError(f"the native kernel runs on the CPU, not on {grad_TO.device}")
    kernel = _kernel(x_TI.dtype)
    if grad_TO.dtype != x_TI.dtype:
        grad_TO = grad_TO.to(x_TI.dtype)
    grad_TO, x_TI, index_OK = _token_rows(grad_TO), _token_rows(x_TI), index_OK.contiguous()
    (tokens, outputs), inputs, k = grad_TO.shape, x_TI.shape[1], index_OK.shape[1]
    block, chosen = _block(tokens, inputs, x_TI.element_size()), index_OK.data_ptr()
    columns, keep, ready = last_columns.of(x_TI, chosen, block)
    sampled_OK = torch.empty(outputs, k, dtype=torch.float32)
    kernel(
        grad_TO.data_ptr(), grad_TO.stride(0), x_TI.data_ptr(), x_TI.stride(0), chosen,
        tokens, inputs, outputs, k, block, keep, ready, columns, sampled_OK.data_ptr(),
    )  # fmt: skip
    return sampled_OK


@functools.cache
def _block(tokens: int, inputs: int, size: int) -> int:
    """Tokens at a time, whole vectors of them: short rows are not padded to more than one vector."""
    vector = VECTOR // size
    fits = BLOCK_BYTES // (inputs * size) // vector * vector
    return min(-(-tokens // vector) * vector, max(LONGEST // 4 // size, min(LONGEST // size, fits)))


def _token_rows(matrix: Tensor) -> Tensor:
    """A view is fine as long as a token's values lie side by side."""
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()


# ---------------------------------------------------------------------------------------------------
# The largest magnitudes

TOP_K = {torch.float32: "top_k_32", torch.bfloat16: "top_k_16", torch.float16: "top_k_16"}
INFINITE = {
    torch.float32: 0x7F800000,
    torch.bfloat16: 0x7F80,
    torch.float16: 0x7C00,
}  # its bits; NaN's are more
TOP_K_INPUTS = 1 << 17  # a row is held on a thread's stack


def top_k_available(weight_OI: Tensor) -> bool:
    """Whether `top_k_magnitude` takes this weight: on the CPU, rows contiguous."""
    return (
        weight_OI.device.type == "cpu"
        and weight_OI.dtype in TOP_K
        and weight_OI.stride(1) == 1
        and weight_OI.shape[1] <= TOP_K_INPUTS
        and _library() is not None
    )


def top_k_magnitude(weight_OI: Tensor, k: int) -> tuple[Tensor, bool]:
    """(the K columns with the largest |w| per row, ascending, int32 `[O, K]`; whether all of it is finite).

    Of equal ones the lower column; NaN and infinity count as largest. Ask `top_k_available` first.
    """
    library = _library()
    assert library is not None
    outputs, inputs = weight_OI.shape
    index_OK = torch.empty(outputs, k, dtype=torch.int32)
    function = getattr(library, TOP_K[weight_OI.dtype])
    largest = function(weight_OI.data_ptr(), weight_OI.stride(0), outputs, inputs, k, index_OK.data_ptr())
    return index_OK, largest < INFINITE[weight_OI.dtype]


# ---------------------------------------------------------------------------------------------------
# Folding


class _Job(ctypes.Structure):
    """As in fold.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "index", "base", "delta")),
        *(
            (name, ctypes.c_int64)
            for name in ("neurons", "k", "outputs", "matrix", "row", "column", "narrow")
        ),
    ]


FOLDED = (torch.float32, torch.bfloat16)
# (weight, index, base, delta or None, layout)
Fold = tuple[Tensor, Tensor, Tensor, Tensor | None, Layout]


def fold_available(weight: Tensor, index_OK: Tensor, base_OK: Tensor, delta_OK: Tensor | None) -> bool:
    """Whether `fold` takes this weight: fp32 or bf16 on the CPU, fp32 deltas, all of it contiguous."""
    return (
        type(index_OK) is Tensor  # fake and distributed tensors are of other classes, and have no memory here
        and weight.device.type == "cpu"
        and weight.dtype in FOLDED
        and base_OK.dtype == weight.dtype
        and index_OK.dtype == torch.int32
        and (delta_OK is None or (delta_OK.dtype == torch.float32 and delta_OK.is_contiguous()))
        and weight.is_contiguous()
        and index_OK.is_contiguous()
        and base_OK.is_contiguous()
        and _library() is not None
    )


def fold(jobs: Sequence[Fold]) -> None:
    """W[o, index_ok] = round(base_ok + delta_ok) in place, for each of the jobs; without delta the base.

    Ask `fold_available` first.
    """
    library = _library()
    assert library is not None
    library.fold((_Job * len(jobs))(*(_job(*job) for job in jobs)), len(jobs))
    # what a backward pass saved before is known to be out of date by its version
    torch.autograd.graph.increment_version([weight for weight, *_ in jobs])


def _job(weight: Tensor, index_OK: Tensor, base_OK: Tensor, delta_OK: Tensor | None, layout: Layout) -> _Job:
    outputs, inputs = layout.outputs, layout.inputs
    row, column = (1, outputs) if layout.transposed else (inputs, 1)
    return _Job(
        weight.data_ptr(), index_OK.data_ptr(), base_OK.data_ptr(),
        None if delta_OK is None else delta_OK.data_ptr(), *index_OK.shape, outputs, outputs * inputs,
        row, column, weight.itemsize == 2,
    )  # fmt: skip


TAKEN = (torch.float32, torch.bfloat16, torch.float16)


def take_available(weight: Tensor, index_OK: Tensor) -> bool:
    """Whether `take` reads this weight: of 16 or 32 bits on the CPU, all of it contiguous."""
    return (
        type(index_OK) is Tensor
        and weight.device.type == "cpu"
        and weight.dtype in TAKEN
        and index_OK.dtype == torch.int32
        and weight.is_contiguous()
        and index_OK.is_contiguous()
        and _library() is not None
    )


def take(weight: Tensor, index_OK: Tensor, layout: Layout) -> Tensor:
    """The chosen entries [O, K]. Every column has to be one of the weight's: nothing is checked.

    Ask `take_available` first.
    """
    library = _library()
    assert library is not None
    base_OK = torch.empty(index_OK.shape, dtype=weight.dtype)
    library.take(ctypes.byref(_job(weight, index_OK, base_OK, None, layout)))
    return base_OK
