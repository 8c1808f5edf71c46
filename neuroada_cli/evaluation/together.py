"""Which prompts can share a batch without changing what a model writes: tried, since no config says it.

B = rows, S = tokens of a batch, N = new tokens, V = vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Together = Literal["all", "of one length", "none"]
FILL, NEW = 3, 2  # places of padding and new tokens that are tried; the second new one comes by the cache
# of the logits' spread; what masks leave of padding is roundings
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}


@torch.no_grad()
def can_be_together(model: Any, rows: Sequence[Sequence[int]], pad: int) -> Together:
    """The prompts beside which a prompt's logits are those that it has alone.

    Recurrences that take no mask go over padding, and XLNet attends to it: only prompts of one length can be
    together. RWKV's of transformers mixes rows, whatever their length.
    """
    if len(rows) < 2:
        return "all"
    short = list(sorted(rows, key=len)[0])
    weight = model.get_input_embeddings().weight
    try:
        alone_NV = _logits(model, [short], 0, pad)
    except RuntimeError:  # it takes no row so short but beside longer ones (LongT5): nothing to compare with
        return "all"

    def differs(found_NV: Tensor) -> bool:
        change = float((found_NV - alone_NV).abs().max())
        return change > TOLERANCE.get(weight.dtype, 0.0) * float(alone_NV.std())

    other = [(token + 1) % len(weight) for token in short]
    if differs(_logits(model, [short, other], 0, pad)):
        return "none"
    one_length = all(len(row) == len(short) for row in rows)
    return "of one length" if not one_length and differs(_logits(model, [short], FILL, pad)) else "all"


def _logits(model: Any, rows: list[list[int]], fill: int, pad: int) -> Tensor:
    """[N, V] of the first row, where `generate` writes N tokens to it. A decoder's prompts are padded on the
    left, an encoder's on the right.
    """
    ids, seen = [pad] * fill, [0] * fill
    behind = model.config.is_encoder_decoder
    ids_BS = torch.tensor([row + ids if behind else ids + row for row in rows], device=model.device)
    mask_BS = torch.tensor([[1] * len(row) + seen if behind else seen + [1] * len(row) for row in rows])
    found = model.generate(
        ids_BS, attention_mask=mask_BS.to(model.device), min_new_tokens=NEW, max_new_tokens=NEW,
        do_sample=False, num_beams=1, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack([logits_BV[0].float() for logits_BV in found.logits])
