"""The gradient of the deltas: only the K entries per row that train, never the O x I product.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens

    d_delta_ok = sum_t g_to x_{t,index_ok}        (chain rule on NeuroAda eq. 2, arXiv:2510.18940)

a sampled dense-dense product with O*K*T multiplications where the dense gradient has O*I*T.
`dense_oracle` is the obvious form; every other entry of BACKENDS must equal it and exists for speed.
"""

from __future__ import annotations

import functools
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli.delta import native, triton_buckets, triton_grad

# torch announces once that CSR tensors are in beta; the one operation used here is held to the oracle
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

TILE_ELEMENTS = 1 << 20  # largest temporary of the tiled back-end, in elements


def dense_oracle(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor) -> Tensor:
    """The definition: the whole gradient, then the K entries of each row. For tests."""
    return (grad_TO.float().T @ x_TI.float()).gather(1, index_OK.long())


def tiled(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor) -> Tensor:
    """A block of neurons at a time: small dense product, pick, forget. Wins when K is a large share of I.

    The product is fp32, whatever the inputs are: precision must not depend on which back-end a shape gets.
    """
    if x_TI.device.type == "cpu":  # CUDA multiplies 16-bit numbers into fp32
        grad_TO, x_TI = grad_TO.float(), x_TI.float()
    outputs, inputs = grad_TO.shape[1], x_TI.shape[1]
    block = max(1, TILE_ELEMENTS // max(inputs, 1))
    sampled_OK = torch.empty(index_OK.shape, dtype=torch.float32, device=grad_TO.device)
    for start in range(0, outputs, block):
        rows = slice(start, start + block)
        dense_oi = _fp32_product(grad_TO[:, rows].T, x_TI)
        sampled_OK[rows] = dense_oi.gather(1, index_OK[rows].long())
    return sampled_OK


def _fp32_product(left: Tensor, right: Tensor) -> Tensor:
    return left @ right if left.dtype == torch.float32 else torch.mm(left, right, out_dtype=torch.float32)


def gathered(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor) -> Tensor:
    """Gather one input per neuron and multiply: K passes over T x O without any transpose. For small K."""
    columns_KO = index_OK.T.long()
    grad = grad_TO.float()
    sums = [(grad * x_TI.index_select(1, column_O)).sum(dim=0) for column_O in columns_KO]
    return torch.stack(sums, dim=1)


def sampled_addmm(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor) -> Tensor:
    """torch's own sampled product on a CSR pattern (rows of equal length); fp32, tokens contiguous."""
    outputs, k = index_OK.shape
    row_starts = torch.arange(0, outputs * k + 1, k, dtype=torch.int32, device=index_OK.device)
    pattern = torch.sparse_csr_tensor(
        row_starts,
        index_OK.reshape(-1),
        torch.zeros(outputs * k, dtype=torch.float32, device=index_OK.device),
        size=(outputs, x_TI.shape[1]),
        check_invariants=False,
    )
    grad_OT = grad_TO.float().T.contiguous()
    x_IT = x_TI.float().T.contiguous()
    sampled: Tensor = torch.sparse.sampled_addmm(pattern, grad_OT, x_IT.T, beta=0.0).values()
    return sampled.view(outputs, k)


Backend = Callable[[Tensor, Tensor, Tensor], Tensor]

BACKENDS: dict[str, Backend] = {
    "dense_oracle": dense_oracle,
    "tiled": tiled,
    "gathered": gathered,
    "sampled_addmm": sampled_addmm,
    "native": native.native,
    "triton": triton_grad.triton_grad,
    "triton_rows": triton_grad.triton_rows,
    "triton_buckets": triton_buckets.triton_buckets,
}

# Measured winners; `make bench-op` rewrites the file on the machine it runs on (see docs/performance.md).
TABLE = Path(__file__).with_name("backend_table.json")


def usable(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Back-ends that can run here, without the oracle."""
    names = ["tiled", "gathered"]
    if device.type != "cpu" or dtype in (torch.float32, torch.bfloat16, torch.float16):
        names.append("sampled_addmm")
    if device.type == "cpu" and native.available(dtype):
        names.append("native")
    if triton_grad.available(device):
        names.append("triton")
        if dtype in triton_grad.ROW_DTYPES:
            names += ["triton_rows", "triton_buckets"]
    return names


def usable_for(inputs: int, k: int, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Of them those that can take a layer of so many inputs, K of them chosen."""
    cannot = set()
    if not triton_grad.rows_fit(inputs, dtype, device):
        cannot.add("triton_rows")
    if not triton_buckets.fits(k, inputs, dtype):
        cannot.add("triton_buckets")
    return [name for name in usable(device, dtype) if name not in cannot]


@functools.cache
def pick_backend(
    tokens: int, inputs: int, outputs: int, k: int, dtype: torch.dtype, device: torch.device
) -> str:
    """The back-end for a shape: $NEUROADA_BACKEND, else the nearest measured shape's winner, else a rule.

    Near means close in the logarithms of T, I, O and K, on the same kind of device in the same dtype. The
    rule for what the table lacks: sampling beats the dense product until K is about a quarter of I.
    """
    forced = os.environ.get("NEUROADA_BACKEND")
    if forced:
        return forced
    here = usable_for(inputs, k, dtype, device)
    kind = f"{device.type} {str(dtype).removeprefix('torch.')}"
    measured = [row for row in _table() if row["kind"] == kind and row["fastest"] in here]
    if measured:

        def distance(row: dict[str, Any]) -> float:
            pairs = (
                (tokens, row["tokens"]),
                (inputs, row["inputs"]),
                (outputs, row["outputs"]),
                (k, row["k"]),
            )
            return sum(math.log(ours / theirs) ** 2 for ours, theirs in pairs)

        return str(min(measured, key=distance)["fastest"])
    if 4 * k > inputs:
        return "tiled"
    order = ["triton", "native", "sampled_addmm", "tiled"]
    if k <= triton_grad.ROWS_MOST_K:
        order.insert(0, "triton_rows")
    return next(name for name in order if name in here)


@functools.cache
def _table() -> list[dict[str, Any]]:
    return list(json.loads(TABLE.read_text(encoding="utf-8"))["rows"]) if TABLE.is_file() else []


def sampled_grad(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor, backend: str | None = None) -> Tensor:
    """The sampled gradient, fp32 `[O, K]`, with the named back-end or the one measured to be fastest.

    grad_TO   gradient of the layer's output, tokens flattened
    x_TI      the layer's input, tokens flattened
    index_OK  int32, the chosen columns of every row
    Raises ValueError for an unknown back-end.
    """
    (tokens, outputs), (inputs, k) = grad_TO.shape, (x_TI.shape[1], index_OK.shape[1])
    if tokens == 0:
        return torch.zeros(index_OK.shape, dtype=torch.float32, device=grad_TO.device)
    name = backend or pick_backend(tokens, inputs, outputs, k, x_TI.dtype, grad_TO.device)
    if name not in BACKENDS:
        raise ValueError(f"back-end {name} is not one of {', '.join(BACKENDS)}")
    return BACKENDS[name](grad_TO, x_TI, index_OK)
