"""A traced tensor leads every number back to where it was: chains of operations against real tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_run import one_thread  # noqa: F401
from torch import Tensor

from neuroada_cli.hub.tracing import NotTraced, stored

SHAPE = (4, 6, 2)
STEPS: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "cat": lambda ts: [torch.cat(ts, dim=0)],
    "cat last": lambda ts: [torch.cat([t.unsqueeze(-1).squeeze(-1) for t in ts], dim=-1)],
    "stack": lambda ts: [torch.stack(ts, dim=1)],
    "chunk": lambda ts: [c.contiguous() for t in ts for c in torch.chunk(t, 2, dim=0)],
    "split": lambda ts: [c for t in ts for c in torch.split(t, [1, t.shape[0] - 1], dim=0)][:2],
    "unbind": lambda ts: list(torch.unbind(ts[0], dim=0)) if ts[0].ndim > 1 else ts,
    "transpose": lambda ts: [torch.transpose(t, 0, -1).contiguous() for t in ts],
    "permute": lambda ts: [t.permute(*reversed(range(t.ndim))) for t in ts],
    "flat": lambda ts: [t.reshape(-1) for t in ts],
    "interleave": lambda ts: [t.reshape(2, -1).transpose(0, 1).reshape(t.shape) for t in ts],
    "view": lambda ts: [t.contiguous().view(1, *t.shape).squeeze(0) for t in ts],
    "unsqueeze": lambda ts: [t.unsqueeze(1) for t in ts],
    "first": lambda ts: [t[0] for t in ts] if ts[0].ndim > 1 else ts,
    "type": lambda ts: [t.to(torch.float64).to(torch.float32)[...] for t in ts],
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=6))
@example(["split", "split", "chunk"])  # of nothing
def test_every_number_is_found_where_it_was_read(names: list[str]) -> None:
    files = [torch.arange(48.0).view(SHAPE) + 100 * number for number in range(3)]
    real, traced = list(files), [stored(number, SHAPE, torch.float32) for number in range(3)]
    for name in names:
        made = []
        for tensors in (real, traced):
            try:
                made.append(STEPS[name](tensors))
            except (RuntimeError, IndexError):  # the shapes do not go together
                made.append(None)
        if made[0] is None:
            assert made[1] is None
            continue
        real, traced = made  # type: ignore[assignment]
    for tensor, way in zip(real, traced, strict=True):
        assert way.shape == tensor.shape
        number_N, place_N = way.lies_at(torch.arange(tensor.numel()))
        values = [float(files[n].view(-1)[p]) for n, p in zip(number_N, place_N, strict=True)]
        assert values == tensor.reshape(-1).tolist()


@pytest.mark.parametrize(
    "change", [lambda t: t * 2, lambda t: t.flip(0), lambda t: t.index_select(0, t[0, 0])]
)
def test_what_cannot_be_followed_is_said(change: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises((NotTraced, RuntimeError)):
        change(stored(0, SHAPE, torch.float32))
