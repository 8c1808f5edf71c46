"""Whether a model keeps packed rows apart: tried once, before training on them.

S = tokens of all rows together, V = vocabulary
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice

import torch
from torch import Tensor, nn

from neuroada_cli.data.batch import Encoded, pack
from neuroada_cli.errors import ModelError
from neuroada_cli.loop.loss import order_of
from neuroada_cli.loop.modes import evaluating

TRIED_TOKENS = 32
# of the logits' spread, between a row by itself and among others: other shapes, so other roundings
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
NOISE = 4  # times what a row changes by when those behind it do, which it cannot see
FIX = "set train.packing: false"


@torch.no_grad()
def check_packing(model: nn.Module, rows: Sequence[Encoded]) -> None:
    """A packed row must not change when the tokens before it do, and be what it is by itself.

    Of a row that sees no other the logits are the same to the last bit, whatever the data type, since shapes
    are the same. A mixture's experts work on all tokens at once, so others may change its roundings: as much
    as those of the rows behind it do.
    Raises ModelError for a model that mixes rows (a convolution or a state that runs on), or that takes no
    positions to tell them apart by.
    """
    short = [
        replace(row, input_ids=row.input_ids[:TRIED_TOKENS], labels=[])
        for row in islice(chain(rows, rows), 2)
    ]
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ModelError(
            "takes no position_ids, so packed rows cannot be kept apart", type(model).__name__, FIX
        )
    first, row = short
    known = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    other = replace(first, input_ids=[(token + 1) % known for token in first.input_ids])
    with evaluating(model):
        packed_SV = _logits_of(model, row, [first], [first])
        seen = _largest(packed_SV - _logits_of(model, row, [other], [first]))
        noise = _largest(packed_SV - _logits_of(model, row, [first], [other]))
        alone = _largest(packed_SV - _logits_of(model, row, [], []))
    spread = float(packed_SV.std())
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    if seen > NOISE * noise:
        what = f"logits of a row change by {seen / spread:.2g} of their spread with the row before it"
    elif not alone < TOLERANCE.get(dtype, 0) * spread:
        what = f"logits differ by {alone / spread:.2g} of their spread from those of a row by itself"
    else:
        return
    raise ModelError(f"does not keep packed rows apart: {what}", type(model).__name__, FIX)


def _logits_of(model: nn.Module, row: Encoded, before: Sequence[Encoded], after: Sequence[Encoded]) -> Tensor:
    """fp32 [S, V] of one of the rows that are packed together."""
    batch = pack([*before, row, *after]).to(next(model.parameters()).device)
    logits_SV = model(input_ids=batch.tokens_BS, use_cache=False, **order_of(batch)).logits[0].float()
    start = sum(len(each) for each in before)
    found: Tensor = logits_SV[start : start + len(row)]
    return found


def _largest(difference_SV: Tensor) -> float:
    return float(difference_SV.abs().max())
