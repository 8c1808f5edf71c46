"""The CPU kernels: compiled once per machine, absent where there is no C compiler.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens

`kernels.c` is compiled by the machine's own `cc` into the cache folder at first use (about a second).
It is linked against no OpenMP of its own: the symbols resolve to the runtime that torch has loaded, so both
share one thread pool. Without a compiler, or where that runtime is not visible, `available()` is False and
torch's own operations serve.
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
from pathlib import Path

import torch
from torch import Tensor

from neuroada_cli import stopping
from neuroada_cli.machine.cache import cache_folder
from neuroada_cli.machine.processor import cpu_lines, cpu_name

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp"]
TOKENS, PARTS = 128, 8  # tokens per block, parts of the tokens: as in the source
GATHER_LIMIT = 1  # up to this K, picking while walking the tokens beats transposing blocks


def _cpu() -> str:
    """What -march=native depends on: a library built on one machine must not be loaded on another."""
    return "".join(sorted(set(cpu_lines("model name", "flags")))) or cpu_name() + platform.machine()


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("NEUROADA_NATIVE") == "0" or compiler is None:
        return None
    if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):  # torch's thread pool is not visible to us
        return None
    key = hashlib.sha256("\n".join([SOURCE.read_text(), *FLAGS, compiler, _cpu()]).encode()).hexdigest()
    library = cache_folder() / f"kernels-{key[:16]}.so"
    try:
        if not library.exists():
            _compile(compiler, library)
        loaded = ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None
    pointer, stride, size = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
    for name in ("sampled_grad_f32", "sampled_grad_bf16"):
        function = getattr(loaded, name)
        function.argtypes = [
            pointer,
            stride,
            pointer,
            stride,
            pointer,
            size,
            size,
            size,
            size,
            size,
            pointer,
            pointer,
        ]
        function.restype = None
    for name in ("top_k_16", "top_k_32"):
        getattr(loaded, name).argtypes = [pointer, stride, size, size, size, pointer]
        getattr(loaded, name).restype = None
    return loaded


def _compile(compiler: str, library: Path) -> None:
    """Build beside the final name and rename, so that processes racing here all find a whole file."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as folder, _tidied(folder):
        unlinked, built = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        run = functools.partial(subprocess.run, check=True, capture_output=True, timeout=120)
        run([compiler, *FLAGS, "-c", str(SOURCE), "-o", str(unlinked)])
        run([compiler, "-shared", str(unlinked), "-o", str(built)])  # without -fopenmp: no second runtime
        os.replace(built, library)


def _tidied(folder: str) -> stopping.tidied:
    return stopping.tidied(lambda: shutil.rmtree(folder, ignore_errors=True))


def available(dtype: torch.dtype) -> bool:
    """Whether the kernel can run here; compiles it on the first call."""
    return dtype in (torch.float32, torch.bfloat16) and _library() is not None


def native(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor) -> Tensor:
    """The sampled gradient in fp32; inputs fp32 or bf16 (both the same), sums in fp32.

    Raises ValueError for another device or dtype, RuntimeError where the kernel is not available.
    """
    if grad_TO.device.type != "cpu" or x_TI.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"the native kernel takes fp32 or bf16 on the CPU, not {x_TI.dtype} {grad_TO.device}"
        )
    library = _library()
    if library is None:
        raise RuntimeError("the native kernel needs a C compiler (cc) and torch's OpenMP runtime")
    grad_TO = _token_rows(grad_TO.to(x_TI.dtype))
    x_TI = _token_rows(x_TI)
    index_OK = index_OK.contiguous()
    (tokens, outputs), inputs, k = grad_TO.shape, x_TI.shape[1], index_OK.shape[1]
    sampled_OK = torch.empty(outputs, k, dtype=torch.float32)
    gather = k <= GATHER_LIMIT
    scratch = torch.empty(PARTS * k * outputs if gather else inputs * TOKENS, dtype=torch.float32)
    name = "sampled_grad_f32" if x_TI.dtype == torch.float32 else "sampled_grad_bf16"
    getattr(library, name)(
        grad_TO.data_ptr(), grad_TO.stride(0), x_TI.data_ptr(), x_TI.stride(0), index_OK.data_ptr(),
        tokens, inputs, outputs, k, gather, scratch.data_ptr(), sampled_OK.data_ptr(),
    )  # fmt: skip
    return sampled_OK


TOP_K_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOP_K_LIMIT = 64  # beyond this K, keeping the list of the best costs more than it saves


def top_k_available(weight_OI: Tensor, k: int) -> bool:
    """Whether `top_k_magnitude` takes this weight: on the CPU, rows contiguous, K small."""
    return (
        weight_OI.device.type == "cpu"
        and weight_OI.dtype in TOP_K_DTYPES
        and weight_OI.stride(1) == 1
        and k <= TOP_K_LIMIT
        and _library() is not None
    )


def top_k_magnitude(weight_OI: Tensor, k: int) -> Tensor:
    """The K columns with the largest |w| per row, int32 `[O, K]`, unsorted; of equal ones the lower column.

    NaN and infinity count as largest. Ask `top_k_available` first.
    """
    library = _library()
    assert library is not None
    outputs, inputs = weight_OI.shape
    index_OK = torch.empty(outputs, k, dtype=torch.int32)
    function = library.top_k_32 if weight_OI.dtype == torch.float32 else library.top_k_16
    function(weight_OI.data_ptr(), weight_OI.stride(0), outputs, inputs, k, index_OK.data_ptr())
    return index_OK


def _token_rows(matrix: Tensor) -> Tensor:
    """A view is fine as long as a token's values lie side by side."""
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()
