"""Which K connections of every neuron train.

O = output neurons, I = inputs, K = chosen inputs per neuron

A criterion scores every weight; the K highest scores of each row are chosen. The choice is deterministic
on every device: among equal scores the lower column wins, so a selection can be checked by anybody. (It is
stored and reused all the same, never recomputed from a later weight.)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from neuroada_cli.delta import native

# Rows are handled in blocks so that the scores of a 100k-row matrix never stand in full beside the weight.
BLOCK_ELEMENTS = 1 << 22
SMALLEST = 1e-8  # of weights that something is divided by


def by_magnitude(weight_OI: Tensor, generator: torch.Generator | None) -> Tensor:
    """|W|: the paper's criterion (NeuroAda eq. 1, arXiv:2510.18940)."""
    return weight_OI.abs()


def by_reverse(weight_OI: Tensor, generator: torch.Generator | None) -> Tensor:
    """-|W|: the smallest weights, the paper's control."""
    return weight_OI.abs().neg_()


def by_random(weight_OI: Tensor, generator: torch.Generator | None) -> Tensor:
    """K positions per neuron at random, the paper's other control; needs a seeded generator."""
    return torch.rand(weight_OI.shape, generator=generator, dtype=torch.float32)


def stream(seed: int, layer: str) -> torch.Generator:
    """A random stream of each layer's own, so that neither order nor sharding matters."""
    return torch.Generator().manual_seed(seed ^ zlib.crc32(layer.encode()))


Criterion = Callable[[Tensor, torch.Generator | None], Tensor]

CRITERIA: dict[str, Criterion] = {
    "magnitude": by_magnitude,
    "lift": by_magnitude,  # of the low-rank approximation: see `choose`
    "reverse": by_reverse,
    "random": by_random,
}


def by_gradient(weight_OI: Tensor, grad_OI: Tensor) -> Tensor:
    """|G|, G the gradient of the loss summed over all calibration batches' targets (the paper's ablation).

    The size of the sum, not the sum of sizes: rows that pull a weight to and fro cancel out.
    """
    return grad_OI.abs()


def by_snip(weight_OI: Tensor, grad_OI: Tensor) -> Tensor:
    """|W * G|: how much the loss would change to first order without the weight (SNIP, arXiv:1810.02340)."""
    return (weight_OI.float() * grad_OI).abs()


def by_gallop(weight_OI: Tensor, grad_OI: Tensor) -> Tensor:
    """|G| / |W|: large gradients on small weights (GaLLoP, arXiv:2510.19778). A weight of 0 counts as
    SMALLEST, so that its score is finite, and ranks by its gradient among those that are.
    """
    return grad_OI.abs() / weight_OI.float().abs().clamp(min=SMALLEST)


def by_activation(weight_OI: Tensor, norm_I: Tensor) -> Tensor:
    """|W| * ||x_i||: the norm of every input over the calibration tokens (Wanda, arXiv:2306.11695)."""
    return weight_OI.float().abs() * norm_I


# (weight [O, I], what was measured on training rows: fp32 [O, I] or [I]) -> score [O, I]
DATA_CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradient": by_gradient,
    "snip": by_snip,
    "gallop": by_gallop,
    "activation": by_activation,
}

LIFT_RANK = 128


def low_rank(weight_OI: Tensor, rank: int = LIFT_RANK) -> Tensor:
    """The best approximation of W of so low a rank, fp32; W itself where the rank is not lower (LIFT).

    W V V^T, V the eigenvectors of W^T W with the largest eigenvalues (or the same from the left), in fp64.
    Iterating from a random start is quicker and wrong here: a trained matrix' singular values fall so slowly
    that after six iterations half of the largest entries are others. Deterministic on one machine.
    """
    if rank >= min(weight_OI.shape):
        return weight_OI.float()
    device = weight_OI.device
    wide = weight_OI.shape[0] <= weight_OI.shape[1]
    exact = weight_OI.to("cpu" if device.type == "mps" else device, torch.float64)  # mps has no fp64
    exact = exact if wide else exact.T
    top_NR: Tensor = torch.linalg.eigh(exact @ exact.T).eigenvectors[:, -rank:]
    found: Tensor = top_NR @ (top_NR.T @ exact)
    return (found if wide else found.T).to(device, torch.float32)


def choose_by(weight_OI: Tensor, k: int, criterion: str, evidence: Tensor) -> Tensor:
    """As `choose`, by one of DATA_CRITERIA; evidence is fp32 [O, I], or [I] for `activation`."""
    outputs, inputs = weight_OI.shape
    index_OK = torch.empty(outputs, k, dtype=torch.int32, device=weight_OI.device)
    block = max(1, BLOCK_ELEMENTS // inputs)
    for start in range(0, outputs, block):
        rows = slice(start, start + block)
        measured = evidence[rows] if evidence.ndim == 2 else evidence
        index_OK[rows] = top_k_stable(DATA_CRITERIA[criterion](weight_OI[rows], measured), k)
    return index_OK


def choose(
    weight_OI: Tensor,
    k: int,
    criterion: str = "magnitude",
    generator: torch.Generator | None = None,
    rank: int = LIFT_RANK,
) -> Tensor:
    """The K columns of every row with the highest score: int32 `[O, K]`, ascending within a row.

    weight_OI  any float dtype, rows are neurons (transpose a GPT-2 Conv1D first)
    generator  used by `random` only;  rank by `lift` only
    Raises ValueError for k outside 1..I, an unknown criterion, or a weight that is not finite.
    """
    outputs, inputs = weight_OI.shape
    if not 1 <= k <= inputs:
        raise ValueError(f"k={k}, but a neuron has {inputs} inputs; choose 1..{inputs}")
    if criterion not in CRITERIA:
        raise ValueError(f"criterion {criterion} is not one of {', '.join(CRITERIA)}")
    if criterion == "lift":
        if not torch.isfinite(weight_OI).all():
            raise ValueError("a score is NaN or infinite")
        weight_OI, criterion = low_rank(weight_OI, rank), "magnitude"
    if criterion == "magnitude" and native.top_k_available(weight_OI):
        index_OK, finite = native.top_k_magnitude(weight_OI, k)
        if not finite:
            raise ValueError("a score is NaN or infinite")
        return index_OK
    rule = CRITERIA[criterion]
    index_OK = torch.empty(outputs, k, dtype=torch.int32, device=weight_OI.device)
    block = max(1, BLOCK_ELEMENTS // inputs)
    for start in range(0, outputs, block):
        rows = slice(start, start + block)
        score_OI = rule(weight_OI[rows], generator).to(weight_OI.device)
        index_OK[rows] = top_k_stable(score_OI, k)
    return index_OK


def score(
    weight_OI: Tensor,
    criterion: str = "magnitude",
    generator: torch.Generator | None = None,
    rank: int = LIFT_RANK,
) -> Tensor:
    """The scores that `choose` goes by, all at once: [O, I]. Raises ValueError for an unknown criterion."""
    if criterion not in CRITERIA:
        raise ValueError(f"criterion {criterion} is not one of {', '.join(CRITERIA)}")
    if criterion == "lift":
        weight_OI = low_rank(weight_OI, rank)
    return CRITERIA[criterion](weight_OI, generator)


def top_k_stable(score_OI: Tensor, k: int) -> Tensor:
    """Columns of the K highest scores per row, ascending; of equal scores the lower column is taken.

    Plain `topk` picks ties as it likes. One value more than K tells where that matters: only rows whose
    K-th and (K+1)-th scores are equal (common in bf16) are chosen again by the rule.
    Raises ValueError where a chosen score is NaN or infinite (`topk` puts NaN first).
    """
    inputs = score_OI.shape[1]
    top = score_OI.topk(min(k + 1, inputs), dim=1)
    if not torch.isfinite(top.values[:, :k]).all():
        raise ValueError("a score is NaN or infinite")
    column_OK = top.indices[:, :k].sort(dim=1).values.to(torch.int32)
    if k < inputs:
        tied = top.values[:, k] == top.values[:, k - 1]
        if tied.any():
            column_OK[tied] = _lowest_tied_columns(score_OI[tied], top.values[tied, k - 1], k)
    return column_OK


def _lowest_tied_columns(score_RI: Tensor, threshold_R: Tensor, k: int) -> Tensor:
    """The same for rows R with a tie at the K-th score: all above it, then the lowest columns equal to it."""
    above_RI = score_RI > threshold_R[:, None]
    equal_RI = score_RI == threshold_R[:, None]
    room_R1 = k - above_RI.sum(dim=1, keepdim=True)
    chosen_RI = above_RI | (equal_RI & (equal_RI.cumsum(dim=1, dtype=torch.int32) <= room_R1))
    # exactly K per row, and nonzero walks rows and columns in ascending order
    return chosen_RI.nonzero()[:, 1].view(-1, k).to(torch.int32)
