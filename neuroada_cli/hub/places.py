"""Where the numbers of a model's parameters lie in its files: parameter, neurons -> stored tensor, places.

What a model calls its parameters, and how it cuts and turns them, is not always what the files hold: Mixtral
stores `block_sparse_moe.experts.0.w1.weight` and computes with `mlp.experts.gate_up_proj`. The map is made
once, by running transformers' own loading rules on tensors that remember where they came from
(`hub.tracing`). Selecting, merging and fitting use nothing else.

O = output neurons, I = inputs
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli.delta.layout import Layout
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.graph import Rules
from neuroada_cli.hub.tracing import NotTraced, Traced, stored
from neuroada_cli.hub.weights import WEIGHT_DTYPES, Weights, stored_name


@dataclass(frozen=True)
class Run:
    """Neurons of a parameter that lie evenly in one stored tensor.

    stored  the tensor;  first, count  the neurons: rows first … first + count - 1 of the parameter
    start   the place in the tensor of neuron `first`, input 0; the next neuron is `across` further on, the
            next input `along`
    """

    stored: str
    first: int
    count: int
    start: int
    across: int
    along: int

    @property
    def neurons(self) -> slice:
        return slice(self.first, self.first + self.count)

    def within(self, rows: slice) -> Run | None:
        """The part of it that lies among these neurons."""
        first, last = max(self.first, rows.start), min(self.first + self.count, rows.stop)
        if first >= last:
            return None
        start = self.start + (first - self.first) * self.across
        return replace(self, first=first, count=last - first, start=start)

    def rows(self, tensor: Tensor, inputs: int) -> Tensor:
        """The neurons' weights [count, I], a view of the stored tensor."""
        return tensor.view(-1).as_strided((self.count, inputs), (self.across, self.along), self._at(tensor))

    def _at(self, tensor: Tensor) -> int:
        return int(tensor.storage_offset()) + self.start

    def flat(self, index_OK: Tensor) -> Tensor:
        """Chosen columns of these neurons, [count, K], as places in the stored tensor: int64."""
        neuron_O1 = torch.arange(self.count, device=index_OK.device)[:, None]
        return self.start + neuron_O1 * self.across + index_OK.long() * self.along


@dataclass(frozen=True)
class _Converted:
    """A parameter that loading makes of stored tensors. all_names gives their names by number."""

    traced: Traced
    names: list[str]
    all_names: list[str]


_Source = str | _Converted


class Places:
    """The map of one base.

    graph     the module graph;  weights  the files
    rules     of loading this model;  skeleton  makes the module graph with its code, where they apply
    """

    def __init__(
        self, graph: nn.Module, weights: Weights, rules: Rules, skeleton: Callable[[], nn.Module]
    ) -> None:
        self._weights, self._rules, self._skeleton = weights, rules, skeleton
        self._prefix = str(graph.base_model_prefix)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in graph.state_dict().items()}
        self._alike = _alike(graph)
        self._runs: dict[tuple[str, Layout], list[Run]] = {}

    @cached_property
    def _sources(self) -> dict[str, _Source]:
        """Parameter or buffer -> the stored tensor that it is, or what it is made of."""
        if not self._rules.apply_to(self._weights):
            held = {name: stored_name(self._weights, name, self._prefix) for name in self._shapes}
            return {name: stored for name, stored in held.items() if stored is not None}
        try:
            return _loaded(self._skeleton(), self._weights)
        except NotTraced as error:
            raise ModelError(
                f"loading it does what cannot be followed to its files ({error})", str(self._weights.folder)
            ) from None

    def plain_names(self) -> dict[str, str]:
        """Parameter -> the stored tensor of its name (but for the prefix), of a model whose loading changes
        none. It is known at once, where the whole map may take transformers' code.
        """
        if self._rules.apply_to(self._weights):
            return {}
        return {name: source for name, source in self._sources.items() if isinstance(source, str)}

    def names(self, parameter: str) -> list[str]:
        """The stored tensors that hold a parameter, all copies of a tied one; none if the files lack it."""
        found: list[str] = []
        for _, source in self._copies(parameter):
            found += [source] if isinstance(source, str) else source.names
        return list(dict.fromkeys(found))

    def own_names(self, parameter: str) -> list[str]:
        """Those of them that are this very parameter as it lies."""
        own = [source for _, source in self._copies(parameter) if isinstance(source, str)]
        return list(dict.fromkeys(own))

    def fits(self, parameter: str) -> bool:
        """Whether the files hold a parameter in the model's shape."""
        found = self._copies(parameter)
        return bool(found) and all(self._shape(source) == self._shapes[name] for name, source in found)

    def own_name(self, parameter: str) -> str | None:
        """The stored tensor that is this very parameter as it lies."""
        source = self._sources.get(parameter)
        return source if isinstance(source, str) else None

    def copies(self, parameter: str, layout: Layout) -> list[list[Run]]:
        """Where a target's neurons lie, once for each stored copy of its weight.

        Raises ModelError where the files hold none, one of another shape, or one whose neurons lie scattered.
        """
        found = [self._runs_of(name, source, layout) for name, source in self._copies(parameter)]
        if not found:
            raise ModelError(
                f"holds no weight for {parameter.removesuffix('.weight')}",
                str(self._weights.folder),
                "it may be created fresh or stored in a packed form; leave it out with select.exclude",
            )
        return [runs for number, runs in enumerate(found) if runs not in found[:number]]

    def whole(self, parameter: str) -> list[list[Run]]:
        """As `copies`, for all numbers of any parameter in their order: rows of its last dimension, or, where
        those lie scattered, single numbers.
        """
        shape = self._shapes[parameter]
        last = shape[-1] if shape else 1
        try:
            return self.copies(parameter, Layout(math.prod(shape) // max(1, last), last))
        except Scattered:
            return self.copies(parameter, Layout(math.prod(shape), 1))

    def _copies(self, parameter: str) -> list[tuple[str, _Source]]:
        names = self._alike.get(parameter, [parameter])
        return [(name, self._sources[name]) for name in names if name in self._sources]

    def _runs_of(self, name: str, source: _Source, layout: Layout) -> list[Run]:
        key = (name, layout)
        if key not in self._runs:
            self._check_shape(name, source)
            if isinstance(source, str):
                self._runs[key] = _as_it_lies(source, layout)
            else:
                self._runs[key] = _followed(name, source, layout)
        return self._runs[key]

    def _check_shape(self, name: str, source: _Source) -> None:
        stored, found = source if isinstance(source, str) else source.names[0], self._shape(source)
        info = self._weights.info(stored)
        if info.dtype not in WEIGHT_DTYPES:
            raise ModelError(
                f"{stored} is stored as {str(info.dtype).removeprefix('torch.')}",
                str(info.file),
                "use the model's 16- or 32-bit original",
            )
        if found != self._shapes[name]:
            has = "has" if isinstance(source, str) else f"and {len(source.names) - 1} more make"
            raise ModelError(
                f"{stored} {has} the shape {list(found)}, but {name.removesuffix('.weight')} needs "
                f"{list(self._shapes[name])}",
                str(info.file),
            )

    def _shape(self, source: _Source) -> tuple[int, ...]:
        return self._weights.info(source).shape if isinstance(source, str) else tuple(source.traced.shape)


class Scattered(ModelError):
    """The inputs of a neuron do not lie evenly in one stored tensor."""


def _alike(graph: nn.Module) -> dict[str, list[str]]:
    """Parameter -> all names that the model has for it, its own first."""
    names: dict[int, list[str]] = {}
    for name, parameter in graph.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: [name, *(o for o in group if o != name)] for group in names.values() for name in group}


def _as_it_lies(stored: str, layout: Layout) -> list[Run]:
    outputs, inputs = layout.outputs, layout.inputs
    if not layout.transposed:
        return [Run(stored, 0, layout.shape[0], 0, inputs, 1)]
    size = outputs * inputs
    return [Run(stored, e * outputs, outputs, e * size, 1, outputs) for e in range(layout.experts or 1)]


def _followed(name: str, source: _Converted, layout: Layout) -> list[Run]:
    """The runs of a traced parameter. Raises Scattered."""
    rows, inputs = layout.shape
    neuron_N = torch.arange(rows)

    def at(column: int) -> tuple[Tensor, Tensor]:
        return source.traced.lies_at(layout.place(neuron_N, torch.full_like(neuron_N, column)))

    number_N, start_N = at(0)
    along_N = at(1)[1] - start_N if inputs > 1 else torch.ones_like(start_N)
    for column in {inputs // 2, inputs - 1}:
        there_N, place_N = at(column)
        if not torch.equal(there_N, number_N) or not torch.equal(place_N - start_N, along_N * column):
            raise Scattered(f"the inputs of {name} lie scattered in the files", source.names[0])
    found: list[Run] = []
    number, start, along = (each.tolist() for each in (number_N, start_N, along_N))
    for first, end in _spans(number_N, start_N, along_N):
        across = start[first + 1] - start[first] if end - first > 1 else 1
        run = Run(source.all_names[number[first]], first, end - first, start[first], across, along[first])
        _check_first(name, source, layout, run, number[first])
        found.append(run)
    return found


def _check_first(name: str, source: _Converted, layout: Layout, run: Run, number: int) -> None:
    """All inputs of a run's first neuron, since only some were looked at of the others."""
    column_N = torch.arange(layout.inputs)
    numbers_N, place_N = source.traced.lies_at(layout.place(torch.full_like(column_N, run.first), column_N))
    if bool((numbers_N != number).any()) or not torch.equal(place_N, run.start + column_N * run.along):
        raise Scattered(f"the inputs of {name} lie scattered in the files", run.stored)


def _spans(number_N: Tensor, start_N: Tensor, along_N: Tensor) -> Iterator[tuple[int, int]]:
    """(first, end) of neurons of one stored tensor that lie evenly, as long as can be."""
    step_N = start_N.diff()
    parts_N = (number_N.diff() != 0) | (along_N.diff() != 0)  # between neuron n and n + 1
    bends_N = torch.zeros_like(parts_N)
    bends_N[1:] = step_N[1:] != step_N[:-1]
    first = 0
    for place in [*(parts_N | bends_N).nonzero().flatten().tolist(), len(number_N) - 1]:
        # the step to the next differs: a new span, unless this one begins here and may take that step
        if place < first or (place == first and place < len(number_N) - 1 and not parts_N[place]):
            continue
        yield first, place + 1
        first = place + 1


# ---------------------------------------------------------------------------------------------------
# transformers' loading, on traced tensors


def _loaded(model: Any, weights: Weights) -> dict[str, _Source]:
    """Parameter or buffer -> its source: `convert_and_load_state_dict_in_model`'s loop, without numbers."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    wanted, prefix = model.state_dict(), model.base_model_prefix
    loads: dict[str, Any] = {}
    held: dict[str, list[str]] = {}
    all_names: list[str] = sorted(weights, key=dot_natural_key)
    for number, name in enumerate(all_names):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if renamed not in wanted and name in wanted:
            renamed, pattern = rename_source_key(name, [], [], prefix, wanted)
        if renamed not in wanted:
            continue  # the model does not use it
        info = weights.info(name)
        rule = WeightRenaming(name, renamed) if pattern is None else copy.deepcopy(by_pattern[pattern])
        rule = loads.setdefault(renamed, rule)
        rule.add_tensor(renamed, name, pattern or name, stored(number, info.shape, info.dtype))
        held.setdefault(renamed, []).append(name)
    found: dict[str, _Source] = {}
    for first, rule in loads.items():
        if isinstance(rule, WeightRenaming):
            found[first] = held[first][0]
            continue
        for name, made in rule.convert(first, model=model, config=model.config).items():
            if name in wanted:
                traced = made[0] if isinstance(made, list) else made
                found[name] = _Converted(traced, held[first], all_names)
    return found
