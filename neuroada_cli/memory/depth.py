"""The step of a deep model from those of shallow ones, where its blocks are alike.

What lives in a part of a step (forward pass, backward pass, update) grows by the same bytes with every block
of one kind. So steps of two, three and four blocks say what a step of all of them takes, exactly; and once
that is seen of a model, the last two do for other batches. Where they do not (the growth is uneven,
or a part that is not the peak grows faster than the one that is), nothing is said and the whole model has to
be stepped through.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from neuroada_cli.memory.tracker import StepBytes

TRIED = (2, 3, 4)  # a single block is first and last at once
FEWEST = 10  # blocks of a model for which this is worth it


@dataclass(frozen=True)
class Stack:
    """The blocks of a model, all alike. targets: what is adapted, of all blocks and outside them."""

    model: nn.Module
    name: str
    blocks: nn.ModuleList
    targets: tuple[str, ...]

    @contextmanager
    def cut(self, count: int) -> Iterator[list[str]]:
        """Inside, the model has so many blocks; yields the targets that are left."""
        above, _, own = self.name.rpartition(".")
        owner = self.model.get_submodule(above)
        gone = tuple(f"{self.name}.{number}." for number in range(count, len(self.blocks)))
        setattr(owner, own, nn.ModuleList(list(self.blocks)[:count]))
        try:
            yield [name for name in self.targets if not name.startswith(gone)]
        finally:
            setattr(owner, own, self.blocks)


def alike_blocks(model: nn.Module, counts: Mapping[str, int], whole: Sequence[str]) -> Stack | None:
    """The one list of blocks, if there is one, they are many, and nothing but their number tells them apart.

    counts  module -> connections per neuron of what is adapted;  whole  parameters that train in full
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    outer = [(n, m) for n, m in lists if not any(n.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) != 1 or len(outer[0][1]) < FEWEST:
        return None
    name, blocks = outer[0]

    def signature(number: int) -> Any:
        inside = f"{name}.{number}."
        parts = [(n, type(m).__name__, _settings(m, number)) for n, m in blocks[number].named_modules()]
        tensors = [(n, tuple(p.shape), p.dtype) for n, p in blocks[number].named_parameters()]
        adapted = {n.removeprefix(inside): c for n, c in counts.items() if n.startswith(inside)}
        trained = {n.removeprefix(inside) for n in whole if n.startswith(inside)}
        return parts, tensors, adapted, trained

    first = signature(0)
    if any(signature(number) != first for number in range(1, len(blocks))):
        return None
    return Stack(model, name, blocks, tuple(counts))


def _settings(module: nn.Module, number: int) -> dict[str, Any]:
    """The plain values of a module, but for the number of its block."""
    plain = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str | None)}
    return {k: v for k, v in plain.items() if isinstance(v, bool) or v != number or not k.endswith("_idx")}


def by_depth(
    stack: Stack | None,
    copied: Callable[[], nn.Module],
    step_of: Callable[[nn.Module, Iterable[str]], StepBytes],
    kind: Hashable,
) -> StepBytes | None:
    """The step of the whole stack, or None where shallow ones do not tell it.

    copied  a copy of the stack's model as it is now;  step_of  (a copy, its targets) -> one step
    kind    all that a step follows from but for the model and the size of its batch: where three steps of one
            size grew evenly, two of another size are taken to do so
    """
    if stack is None:
        return None
    even = _EVEN.setdefault(stack.model, set())
    tried = TRIED[1:] if kind in even else TRIED
    found = []
    for count in tried:
        with stack.cut(count) as targets:
            model = copied()
        try:
            found.append(step_of(model, targets))
        except Exception:  # a model that relies on having all of its blocks
            return None
    *_, before, latest = found
    grown = _growth(before, latest)
    if any(_growth(a, b) != grown for a, b in pairwise(found)):
        return None
    parts = [b - a for a, b in zip(before.parts, latest.parts, strict=True)]
    if max(parts) > grown[-1]:  # another part of the step would become the peak
        return None
    even.add(kind)
    more = len(stack.blocks) - tried[-1]
    weights, gradients, left, peak = (n + more * g for n, g in zip(_of(latest), grown, strict=True))
    grown_parts = (n + more * g for n, g in zip(latest.parts, parts, strict=True))
    return StepBytes(weights, gradients, left, tuple(min(part, peak) for part in grown_parts))


_EVEN: WeakKeyDictionary[nn.Module, set[Hashable]] = WeakKeyDictionary()  # model -> kinds of steps


def _growth(before: StepBytes, after: StepBytes) -> list[int]:
    return [b - a for a, b in zip(_of(before), _of(after), strict=True)]


def _of(step: StepBytes) -> tuple[int, int, int, int]:
    return step.weights, step.gradients, step.left, step.peak
