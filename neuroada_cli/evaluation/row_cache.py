"""Keys and values of a batch of rows whose columns are written in place, merged, and dropped.

B = rows of a batch, S = columns of the cache, X = heads, H = size of a head
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SPARE = 64  # columns that a buffer grows by


class Columns(DynamicLayer):  # type: ignore[misc]
    """keys, values [B, X, S, H] are views of buffers with room behind them: a token copies itself only."""

    _buffers: tuple[Tensor, Tensor] | None = None

    def set(self, keys_BXSH: Tensor, values_BXSH: Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(keys_BXSH, values_BXSH)
        self.keys, self.values, self._buffers = keys_BXSH, values_BXSH, None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.set(key_states, value_states)
            return key_states, value_states
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < after:
            self._buffers = _roomy(self.keys, after + SPARE), _roomy(self.values, after + SPARE)
        keys, values = self._buffers
        keys[:, :, before:after], values[:, :, before:after] = key_states, value_states
        self.keys, self.values = keys[:, :, :after], values[:, :, :after]
        return self.keys, self.values


def _roomy(states_BXSH: Any, columns: int) -> Tensor:
    count, heads, there, size = states_BXSH.shape
    buffer: Tensor = states_BXSH.new_zeros((count, heads, columns, size))
    buffer[:, :, :there] = states_BXSH
    return buffer


def empty(config: Any) -> DynamicCache:
    cache = DynamicCache(config=config)
    cache.layers = [Columns() for _ in cache.layers]
    return cache


def cropped(cache: DynamicCache, columns: int) -> DynamicCache:
    """The first columns of it; what is written behind them goes elsewhere."""
    return _made(cache, lambda states: states[:, :, :columns])


def repeated(cache: DynamicCache, count: int) -> DynamicCache:
    """Of a cache of one row: the same for `count`, without a copy until something is written."""
    return _made(cache, lambda states: states.expand(count, -1, -1, -1))


def chosen(cache: DynamicCache, rows_B: Tensor, columns_BS: Tensor) -> DynamicCache:
    """Of these rows these columns."""
    return _made(cache, lambda states: states[rows_B[:, None], :, columns_BS].transpose(1, 2))


def merged(caches: Sequence[DynamicCache]) -> DynamicCache:
    """One behind the other, their last columns in line."""
    if len(caches) == 1:
        return caches[0]
    width = max(cache.get_seq_length() for cache in caches)
    first, *_ = caches
    for at, layer in enumerate(first.layers):
        both = []
        for name in ("keys", "values"):
            parts = [getattr(cache.layers[at], name) for cache in caches]
            both.append(torch.cat([F.pad(part, (0, 0, width - part.shape[-2], 0)) for part in parts]))
        layer.set(*both)
    return first


def _made(cache: DynamicCache, change: Any) -> DynamicCache:
    made = DynamicCache()
    for layer in cache.layers:
        made.layers.append(Columns())
        if layer.is_initialized:
            made.layers[-1].set(change(layer.keys), change(layer.values))
    return made
