"""The gradient of the deltas: only the K entries per row that train, never the O x I product.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens

    d_delta_ok = sum_t g_to x_{t,index_ok}        (chain rule on NeuroAda eq. 2, arXiv:2510.18940)

a sampled dense-dense product with O*K*T multiplications where the dense gradient has O*I*T.
`dense_oracle` is the obvious form; every other entry of BACKENDS must equal it and exists for speed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from neuroada_cli.delta.native import available, native

# torch announces once that CSR tensors are in beta; the one operation used here is held to the oracle
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

TILE_ELEMENTS = 1 << 20  # largest temporary of the tiled back-end, in elements


def dense_oracle(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor) -> Tensor:
    """The definition: the whole gradient, then the K entries of each row. For tests."""
    return (grad_TO.float().T @ x_TI.float()).gather(1, index_OK.long())


def tiled(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor) -> Tensor:
    """A block of neurons at a time: small dense product, pick, forget. Wins when K is a large share of I."""
    outputs, inputs = grad_TO.shape[1], x_TI.shape[1]
    block = max(1, TILE_ELEMENTS // max(inputs, 1))
    sampled_OK = torch.empty(index_OK.shape, dtype=torch.float32, device=grad_TO.device)
    for start in range(0, outputs, block):
        rows = slice(start, start + block)
        dense_oi = grad_TO[:, rows].T @ x_TI
        sampled_OK[rows] = dense_oi.gather(1, index_OK[rows].long()).float()
    return sampled_OK


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
    "native": native,
}


def pick_backend(inputs: int, k: int, dtype: torch.dtype, device: str) -> str:
    """The back-end for a layer. Sampling beats the dense product until K is about a quarter of the inputs."""
    if device == "cpu" and 4 * k <= inputs:
        return "native" if available(dtype) else "sampled_addmm"
    return "tiled"


def sampled_grad(grad_TO: Tensor, x_TI: Tensor, index_OK: Tensor, backend: str | None = None) -> Tensor:
    """The sampled gradient, fp32 `[O, K]`, with the named back-end or the one measured to be fastest.

    grad_TO   gradient of the layer's output, tokens flattened
    x_TI      the layer's input, tokens flattened
    index_OK  int32, the chosen columns of every row
    Raises ValueError for an unknown back-end.
    """
    if grad_TO.shape[0] == 0:
        return torch.zeros(index_OK.shape, dtype=torch.float32, device=grad_TO.device)
    name = backend or pick_backend(x_TI.shape[1], index_OK.shape[1], x_TI.dtype, grad_TO.device.type)
    if name not in BACKENDS:
        raise ValueError(f"back-end {name} is not one of {', '.join(BACKENDS)}")
    return BACKENDS[name](grad_TO, x_TI, index_OK)
