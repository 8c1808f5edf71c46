"""Batches of an evaluation, dealt to the ranks of a run; what comes of them is known to all, in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from neuroada_cli.ranks.group import Ranks

Item = TypeVar("Item")


def in_rounds(items: Iterable[Item], work: Callable[[Item], Any], ranks: Ranks) -> Iterator[tuple[Item, Any]]:
    """(item, what `work` made of it: JSON) of every item, in their order, on every rank; each is worked on by
    one of them. After every round of as many items as ranks their results are exchanged.
    """
    waiting: list[Item] = []
    for item in items:
        waiting.append(item)
        if len(waiting) == ranks.size:
            yield from _round(waiting, work, ranks)
            waiting = []
    if waiting:
        yield from _round(waiting, work, ranks)


def _round(items: list[Item], work: Callable[[Item], Any], ranks: Ranks) -> Iterator[tuple[Item, Any]]:
    own = work(items[ranks.number]) if ranks.number < len(items) else None
    yield from zip(items, ranks.collected(own)[: len(items)], strict=True)
