"""The most likely continuations of batches of rows: what prompts share is computed once, prompts of a length
go through the model together, guesses of what comes are asked at once, and a row that has ended leaves.

B = rows of a batch, S = columns: of the tokens that are fed, or of the cache; V = vocabulary
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuroada_cli.evaluation import row_cache
from neuroada_cli.evaluation.lookup import Lookup, Row, agreeing, depth
from neuroada_cli.loop.caches import cache_argument, few_logits, takes_any_mask

# what a pass through the model costs beside its tokens, in tokens: reading the weights, calling the layers
OVERHEAD = {"cpu": 16}
OVERHEAD_ELSEWHERE = 512
FORCE = "TRANSFORMERS_SDPA_FORCE_GQA"  # what transformers asks before it copies


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; of none its last one, which has to be asked what follows."""
    most = min(map(len, rows)) - 1
    return next((at for at in range(most) if len({row[at] for row in rows}) > 1), most)


@dataclass
class _Under:
    """A batch under way: its rows, which columns of the cache are theirs [B, S], the cache."""

    rows: list[Row]
    mask_BS: Tensor
    cache: Any


class Writer:
    """Writes batch after batch. broken: a score was NaN.

    In fp32, where it changes no text, a batch goes on with what those before it have computed and written.
    Otherwise each stands alone, so that an evaluation that was stopped goes on as if it had not been.
    """

    def __init__(self, model: Any, ends: Collection[int], device: torch.device) -> None:
        self._model, self._ends, self._device = model, ends, device
        self._cached = str(cache_argument(model))
        self._shares = takes_any_mask(model)
        self._exact = model.dtype == torch.float32
        self._overhead = OVERHEAD.get(device.type, OVERHEAD_ELSEWHERE)
        self._lookup = Lookup()
        self._head: tuple[list[int], Any] = ([], row_cache.empty(model.config))
        self.broken = False

    def complete(self, prompts: Sequence[list[int]], room: int) -> list[list[int]]:
        """What each goes on with, at most `room` tokens, without its end."""
        with grouped_heads(self._device):
            return self._complete(prompts, room)

    def _complete(self, prompts: Sequence[list[int]], room: int) -> list[list[int]]:
        if not self._exact:
            self._lookup = Lookup()
        rows = [Row(prompt) for prompt in prompts]
        shared = self._with_head(prompts)
        guessed = self._guess(rows, room)
        batch = self._merged(
            [
                self._begun([rows[at] for at in group], shared, guessed, room)
                for group in in_groups([len(row.ids) for row in rows], self._overhead)
            ]
        )
        while batch.rows:
            guessed = self._guess(batch.rows, room)
            feeds = [[row.ids[-1], *row.guess[:guessed]] for row in batch.rows]
            self._step(batch, feeds, guessed, room)
        return [[token for token in row.written if token not in self._ends] for row in rows]

    def _with_head(self, prompts: Sequence[list[int]]) -> int:
        """How many first tokens of these prompts are in `self._head`, computed once."""
        if not self._shares:
            return 0
        shared, (known, cache) = shared_prefix(prompts), self._head
        there = min(agreeing(known, prompts[0]), shared)
        if not self._exact and not there == shared == len(known):
            there = 0  # another cut of the prefix may round otherwise
        if (shared - there) * (len(prompts) - 1) < self._overhead:
            return there
        tokens_BS = torch.tensor([prompts[0][there:shared]], device=self._device)
        cache = row_cache.cropped(cache, there) if there else row_cache.empty(self._model.config)
        self._pass(cache, tokens_BS, torch.ones((1, shared), dtype=torch.long, device=self._device), 1)
        self._head = prompts[0][:shared], cache
        return shared

    def _begun(self, rows: list[Row], shared: int, guessed: int, room: int) -> _Under:
        cache = row_cache.empty(self._model.config)
        if shared:
            cache = row_cache.repeated(row_cache.cropped(self._head[1], shared), len(rows))
        feeds = [row.ids[shared:] + row.guess[:guessed] for row in rows]
        mask_BS = torch.ones((len(rows), shared), dtype=torch.long, device=self._device)
        batch = _Under(rows, mask_BS, cache)
        self._step(batch, feeds, guessed, room)
        return batch

    def _merged(self, parts: list[_Under]) -> _Under:
        parts = [part for part in parts if part.rows]
        if not parts:
            return _Under([], torch.empty(0), None)
        width = max(part.mask_BS.shape[1] for part in parts)
        masks = [F.pad(part.mask_BS, (width - part.mask_BS.shape[1], 0)) for part in parts]
        cache = row_cache.merged([part.cache for part in parts])
        return _Under([row for part in parts for row in part.rows], torch.cat(masks), cache)

    def _guess(self, rows: list[Row], room: int) -> int:
        """How many tokens are to be asked ahead of what is known; every row has its guess."""
        lefts = [room - len(row.written) - 1 for row in rows]
        shares = [self._lookup.guess(row, left) for row, left in zip(rows, lefts, strict=True)]
        return depth(
            [(len(row.guess), share) for row, share in zip(rows, shares, strict=True)], self._overhead
        )

    def _step(self, batch: _Under, feeds: list[list[int]], guessed: int, room: int) -> None:
        """Feed tokens, of which the last `guessed` at most are guesses; rows go on, or end and leave."""
        width = max(map(len, feeds))
        padded = [[0] * (width - len(feed)) + feed for feed in feeds]
        real = [[0] * (width - len(feed)) + [1] * len(feed) for feed in feeds]
        tokens_BS, new_BS = torch.tensor([padded, real], device=self._device)
        batch.mask_BS = torch.cat([batch.mask_BS, new_BS], dim=1)
        asked = 1 + min(guessed, max(len(row.guess) for row in batch.rows))
        likeliest, nan = self._pass(batch.cache, tokens_BS, batch.mask_BS, asked)
        stay, wrong = [], []
        for place, row in enumerate(batch.rows):
            guess = row.guess[:guessed]
            said = likeliest[place][asked - 1 - len(guess) :]
            self.broken |= any(nan[place][asked - 1 - len(guess) :])
            right = agreeing(guess, said)
            tokens = self._until_end(said[: right + 1])
            self._lookup.take(row, tokens)
            wrong.append(len(guess) - right)
            if tokens[-1] not in self._ends and len(row.written) < room:
                stay.append(place)
        self._forget(batch, stay, wrong)

    def _forget(self, batch: _Under, stay: list[int], wrong: list[int]) -> None:
        """Of the rows that stay, wrong guesses are never looked at; the others' columns are dropped."""
        there = len(batch.rows)
        batch.rows = [batch.rows[place] for place in stay]
        if not stay:
            return
        if any(wrong):
            back_S = torch.arange(batch.mask_BS.shape[1], 0, -1, device=self._device)
            wrong_B = torch.tensor(wrong, device=self._device)
            batch.mask_BS = batch.mask_BS * (back_S[None] > wrong_B[:, None])
        width, used = batch.mask_BS.shape[1], max(len(row.ids) - 1 for row in batch.rows)
        if len(stay) == there and width - used <= used // 4:
            return
        stay_B = torch.tensor(stay, device=self._device)
        # a stable sort puts the columns that nobody looks at first
        order_BS = batch.mask_BS[stay_B].argsort(dim=1, stable=True)[:, width - used :]
        batch.mask_BS = batch.mask_BS[stay_B].gather(1, order_BS)
        batch.cache = row_cache.chosen(batch.cache, stay_B, order_BS)

    def _until_end(self, tokens: list[int]) -> list[int]:
        return tokens[: next((at + 1 for at, token in enumerate(tokens) if token in self._ends), len(tokens))]

    def _pass(self, cache: Any, tokens_BS: Tensor, mask_BS: Tensor, asked: int) -> tuple[Any, Any]:
        """Of the last `asked` places of each row: the most likely next token, and whether a score was NaN."""
        positions_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)[:, -tokens_BS.shape[1] :]
        output = self._model(
            input_ids=tokens_BS, attention_mask=mask_BS, position_ids=positions_BS, use_cache=True,
            **{self._cached: cache}, **few_logits(self._model, asked),
        )  # fmt: skip
        best_BS, tokens_BS = output.logits[:, -asked:].float().max(dim=-1)
        return tokens_BS.tolist(), best_BS.isnan().tolist()


@contextmanager
def grouped_heads(device: torch.device) -> Iterator[None]:
    """Inside, on a CPU, query heads that share keys and values do so without a copy of these for each, where
    transformers can: with a mask and more than one token it takes the copies for every kind of device, since
    CUDA's fast kernels want no mask.
    """
    before = os.environ.get(FORCE)
    if device.type == "cpu":
        os.environ[FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(FORCE, None)
        else:
            os.environ[FORCE] = before


def in_groups(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Places of rows that are fed together, in their order, padded to the longest: the cheapest cut.

    overhead  what a pass costs beside its tokens, in tokens
    """
    cheapest: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(lengths) + 1):
        longest, costs = 0, []
        for start in range(end - 1, -1, -1):
            longest = max(longest, lengths[start])
            costs.append((cheapest[start][0] + overhead + longest * (end - start), start))
        cheapest.append(min(costs))
    groups, end = [], len(lengths)
    while end:
        start = cheapest[end][1]
        groups.append(list(range(start, end)))
        end = start
    return groups[::-1]
