"""The most likely continuations of a batch of rows: what its prompts share is computed once, and a row that
has ended leaves the batch.

B = rows of a batch, S = sequence length, V = vocabulary
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

WORTH = 64  # tokens that sharing has to save: it takes one more pass through the model
# lengths of rows in a batch change what these compute: frequencies are chosen by the longest
BY_LENGTH = ("dynamic", "longrope")
CACHE = ("past_key_values", "cache")  # what models call it, the latter from transformers 5.24 on
MASKED = ("eager", "sdpa")  # attention that takes any mask, also with a gap between prefix and rest


def can_leave(model: Any) -> bool:
    """Whether rows of this model can leave a batch: it decodes as its library has it, over a cache of keys
    and values and nothing else, and what it computes of a row depends on that row alone.
    """
    from transformers import DynamicCache, GenerationMixin
    from transformers.cache_utils import DynamicLayer

    plain = isinstance(model, GenerationMixin) and all(
        getattr(type(model), name) is getattr(GenerationMixin, name)
        for name in ("generate", "prepare_inputs_for_generation")
    )
    if not plain or model.config.is_encoder_decoder:
        return False
    rope = str(getattr(model.config.get_text_config(decoder=True), "rope_parameters", ""))
    layers = DynamicCache(config=model.config).layers
    taken = set(inspect.signature(model.forward).parameters)
    return (
        {"position_ids", "attention_mask"} <= taken
        and not taken.isdisjoint(CACHE)
        and bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
        and not any(kind in rope for kind in BY_LENGTH)
    )


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; of none its last one, which has to be asked what follows."""
    most = min(map(len, rows)) - 1
    return next((at for at in range(most) if len({row[at] for row in rows}) > 1), most)


def complete(
    model: Any, rows: Sequence[list[int]], room: int, ends: Collection[int], device: torch.device
) -> tuple[list[list[int]], bool]:
    """(what each row goes on with, at most `room` tokens, without its end; whether a score was NaN)."""
    asked = _Asked(model, rows, device)
    written: list[list[int]] = [[] for _ in rows]
    there = list(range(len(rows)))
    broken = torch.zeros((), dtype=torch.bool, device=device)
    for left in reversed(range(room)):
        broken |= asked.scores_BV.isnan().any()
        tokens_B = asked.scores_BV.argmax(dim=-1)
        stay = []
        for place, token in enumerate(tokens_B.tolist()):
            if token not in ends:
                written[there[place]].append(token)
                stay.append(place)
        if not stay or not left:
            break
        if len(stay) < len(there):
            there = [there[place] for place in stay]
            tokens_B = asked.keep(tokens_B, stay)
        asked.go_on(tokens_B)
    return written, bool(broken)


class _Asked:
    """A batch under way. scores_BV: of the next token of the rows that are left, fp32."""

    def __init__(self, model: Any, rows: Sequence[list[int]], device: torch.device) -> None:
        from transformers import DynamicCache

        self._model, self._cache = model, DynamicCache(config=model.config)
        taken = inspect.signature(model.forward).parameters
        self._settings = {"use_cache": True, **({"logits_to_keep": 1} if "logits_to_keep" in taken else {})}
        self._settings |= {next(name for name in CACHE if name in taken): self._cache}
        count, shared = len(rows), self._worth_sharing(rows)
        if shared:
            head_BS = torch.tensor([rows[0][:shared]], device=device)
            self._pass(head_BS, torch.ones_like(head_BS), torch.arange(shared, device=device)[None])
            self._cache.batch_repeat_interleave(count)
        width = max(map(len, rows)) - shared
        tokens_BS = torch.zeros((count, width), dtype=torch.long)
        mask_BS = torch.ones((count, shared + width), dtype=torch.long)
        for place, row in enumerate(rows):
            rest = row[shared:]
            tokens_BS[place, width - len(rest) :] = torch.tensor(rest)
            mask_BS[place, shared : shared + width - len(rest)] = 0
        self._mask_BS = mask_BS.to(device)
        positions_BS = (self._mask_BS.cumsum(-1) - 1).clamp(min=0)
        self._position_B1 = positions_BS[:, -1:]
        self.scores_BV = self._pass(tokens_BS.to(device), self._mask_BS, positions_BS[:, shared:])

    def _worth_sharing(self, rows: Sequence[list[int]]) -> int:
        shared = shared_prefix(rows)
        takes = getattr(self._model.config, "_attn_implementation", None) in MASKED
        return shared if takes and shared * (len(rows) - 1) >= WORTH else 0

    def keep(self, tokens_B: Tensor, places: list[int]) -> Tensor:
        """The others leave; returns the tokens of those that stay."""
        stay_B = torch.tensor(places, device=tokens_B.device)
        self._cache.batch_select_indices(stay_B)
        self._mask_BS, self._position_B1 = self._mask_BS[stay_B], self._position_B1[stay_B]
        return tokens_B[stay_B]

    def go_on(self, tokens_B: Tensor) -> None:
        self._mask_BS = torch.cat([self._mask_BS, self._mask_BS.new_ones(len(tokens_B), 1)], dim=1)
        self._position_B1 = self._position_B1 + 1
        self.scores_BV = self._pass(tokens_B[:, None], self._mask_BS, self._position_B1)

    def _pass(self, tokens_BS: Tensor, mask_BS: Tensor, positions_BS: Tensor) -> Tensor:
        output = self._model(
            input_ids=tokens_BS, attention_mask=mask_BS, position_ids=positions_BS, **self._settings
        )
        return torch.as_tensor(output.logits[:, -1].float())
