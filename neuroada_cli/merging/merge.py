"""Folding deltas into a base's files: what goes into which shard, and each tensor as it is written.

    W' = round(float32(W) + delta) at the K entries of each row, W everywhere else

One tensor is in memory at a time. When the run trained on weights rounded to another data type than the
files have, the base is rounded first, as it was for training, so that what is written is what was trained.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from neuroada_cli import hub
from neuroada_cli.adapter.finite import finite_cast, refuse_broken, refuse_overflow
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.delta.fold import fold_entries
from neuroada_cli.delta.index import filled, size
from neuroada_cli.delta.quantized import round_trip
from neuroada_cli.delta.targets import parameter_name, targets_of
from neuroada_cli.hub.fingerprint import WHOLE_BYTES
from neuroada_cli.hub.loading import packed_layers
from neuroada_cli.hub.places import Run
from neuroada_cli.hub.stored import main_dtype
from neuroada_cli.merging.plan import Planned, make_plan
from neuroada_cli.selection.file import check_read

ROWS = 1024  # compared at once, so that comparing takes no copies of a whole tensor


@dataclass
class FoldStats:
    """What folding did: tensors folded, entries (K per row), how many of them changed, how many non-zero
    deltas were too small for the data type, and the largest |delta|. largest_difference is between what is
    written and what was trained, where the data types differ. whole counts the tensors that take the place of
    the base's (or that it lacks), replaced those of them that differ from it. Of the base's tensors that were
    read so many were compared whole with what they were when the connections were chosen, the others by
    samples.
    """

    tensors: int = 0
    entries: int = 0
    changed: int = 0
    lost: int = 0
    largest_delta: float = 0.0
    largest_difference: float = 0.0
    whole: int = 0
    replaced: int = 0
    read: int = 0
    compared: int = 0


class Merge:
    """The plan of one merge and its tensors.

    adapter   what to fold
    trained   the data type that training saw
    target    the data type of the result
    rename    the result is a classifier: it gets the model's own names, and needs a head
    requantize  quantise and dequantise the base's linear weights first, as training on them did
    Raises ModelError when the adapter's modules or parameters do not fit the base.
    """

    def __init__(
        self,
        base: hub.Base,
        adapter: Adapter,
        trained: torch.dtype,
        target: torch.dtype,
        rename: bool = False,
        requantize: str | None = None,
    ) -> None:
        self.base = base
        self.weights = base.weights
        self.adapter = adapter
        self.trained = trained
        self.target = target
        self.stats = FoldStats()
        self._targets = targets_of(base.graph)
        self._requantize = requantize
        self._packed = self._packed_runs() if requantize else {}
        self.cast = main_dtype(self.weights) != target
        self.plan = make_plan(base, adapter, target, rename)
        sources = (entry.source for entry in self.plan if entry.source)
        largest = max((self.weights.info(source).nbytes for source in sources), default=0)
        self._buffer = torch.empty(largest, dtype=torch.uint8)

    @property
    def parameters(self) -> int:
        """Numbers in the result."""
        return sum(math.prod(entry.shape) for entry in self.plan if entry.dtype.is_floating_point)

    @property
    def onto(self) -> str | None:
        """In words, which weights of a quantised base carry the result; None for a base that never was."""
        kind = self.adapter.settings.get("quantization")
        if kind is None:
            return None
        if self._requantize is not None:
            return f"the base's weights as {kind} leaves them, which training saw"
        return f"the base's original weights; training saw them in {kind}"

    def shards(self, max_bytes: int | None = None) -> list[list[Planned]]:
        """The plan cut into files: the base's own by default, else filled up to max_bytes (a larger tensor
        has a file for itself).
        """
        groups: list[list[Planned]] = []
        previous: object = None
        filled = 0
        for entry in self.plan:
            file = self.weights.info(entry.source).file if entry.source else previous
            full = file != previous if max_bytes is None else filled + entry.nbytes > max_bytes
            if not groups or full:
                groups.append([])
                filled = 0
            groups[-1].append(entry)
            filled += entry.nbytes
            previous = file
        return groups

    def tensors(self, shard: list[Planned]) -> Iterator[Tensor]:
        """The shard's tensors in order, each made when it is asked for and valid until the next one.

        Raises NumericsError where the base, or the result in the target type, is not finite; names module
        and row.
        """
        with _one_thread():
            for entry in shard:
                yield self._tensor(entry)

    def _tensor(self, entry: Planned) -> Tensor:
        if entry.whole is not None:
            return self._whole(entry, entry.whole)
        assert entry.source is not None  # a tensor comes from the base or was trained whole
        weight = self._read(entry.source)
        refuse_broken(weight, entry.source)
        if entry.source in self._packed:
            weight = self._round_trip(weight, self._packed[entry.source])
        if entry.parts:
            return self._with_parts(entry, weight)
        return self._fold(entry, weight)

    def _read(self, source: str) -> Tensor:
        """A tensor of the base, the same as when the connections were chosen, as far as it was read then."""
        weight = self.weights.read_into(source, self._buffer)
        known = check_read(self.adapter.selection.fingerprint, source, weight, self.base.folder)
        self.stats.compared += known or weight.nbytes <= WHOLE_BYTES
        self.stats.read += 1
        return weight

    def _whole(self, entry: Planned, tensor: Tensor) -> Tensor:
        cast = finite_cast(tensor, entry.dtype, entry.name)
        before = None if entry.source is None else self._read(entry.source)
        self.stats.whole += 1
        self.stats.replaced += before is None or not torch.equal(before.to(entry.dtype), cast)
        return cast

    def _with_parts(self, entry: Planned, weight: Tensor) -> Tensor:
        """The tensor with the rows of parameters that were trained whole and lie in it beside others."""
        out = finite_cast(weight, entry.dtype, entry.name).clone()
        for name, run in entry.parts:
            trained = finite_cast(self.adapter.whole[name], entry.dtype, name)
            inputs = trained.numel() // max(1, self._rows(name))
            run.rows(out, inputs).copy_(trained.reshape(-1, inputs)[run.neurons])
        self.stats.whole += 1
        self.stats.replaced += not torch.equal(weight.to(entry.dtype), out)
        return out

    def _rows(self, name: str) -> int:
        return sum(run.count for run in self.base.places.whole(name)[0])

    def _round_trip(self, weight: Tensor, runs: list[tuple[int, Run]]) -> Tensor:
        weight = weight.to(self.trained)
        for inputs, run in runs:
            weight_OI = run.rows(weight, inputs)
            weight_OI.copy_(round_trip(weight_OI, str(self._requantize), self.trained))
        return weight

    def _packed_runs(self) -> dict[str, list[tuple[int, Run]]]:
        """Stored name -> (inputs, neurons) of the layers in it that loading quantises."""
        found: dict[str, list[tuple[int, Run]]] = {}
        for name in packed_layers(self.base.graph):
            parameter, layout = parameter_name(self.base.graph, name), self._targets[name].layout
            if self.base.places.names(parameter):
                for run in self.base.places.copies(parameter, layout)[0]:
                    found.setdefault(run.stored, []).append((layout.inputs, run))
        return found

    def _fold(self, entry: Planned, weight: Tensor) -> Tensor:
        values = [(run, *self._folded(entry, target, run, weight)) for target, run in entry.folds]
        out = finite_cast(weight, entry.dtype, entry.name)
        for _, flat_OK, folded_OK in values:
            out.put_(flat_OK, folded_OK)
        self.stats.tensors += bool(entry.folds)
        return out

    def _folded(self, entry: Planned, target: str, run: Run, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(places in the tensor, round(W + delta) there) of the neurons that lie in it."""
        chosen_OK = self.adapter.selection.indices[target][run.neurons]
        delta_OK = self.adapter.deltas[target][run.neurons]
        flat_OK = run.flat(filled(chosen_OK)[0])
        base_OK = weight.take(flat_OK)
        trained = self.base.rules.dtype_of(parameter_name(self.base.graph, target), self.trained)
        folded_OK = trained_OK = fold_entries(base_OK.to(trained), delta_OK, trained)
        if entry.dtype != trained:
            folded_OK = fold_entries(base_OK, delta_OK, entry.dtype)
            weight_OI = run.rows(weight, self._targets[target].layout.inputs)
            self._note_difference(weight_OI, trained, trained_OK, folded_OK, entry.dtype)
        refuse_overflow(folded_OK, target, entry.dtype, first=run.first)
        self.stats.entries += size(chosen_OK)
        self._count(base_OK.to(entry.dtype), folded_OK, delta_OK)
        return flat_OK, folded_OK

    def _count(self, kept_OK: Tensor, folded_OK: Tensor, delta_OK: Tensor) -> None:
        same_OK = kept_OK == folded_OK
        unchanged = int(same_OK.sum())
        self.stats.changed += same_OK.numel() - unchanged
        self.stats.lost += int((same_OK & (delta_OK != 0)).sum()) if unchanged else 0
        self.stats.largest_delta = max(self.stats.largest_delta, float(delta_OK.abs().max()))

    def _note_difference(
        self,
        weight_OI: Tensor,
        trained: torch.dtype,
        trained_OK: Tensor,
        folded_OK: Tensor,
        written: torch.dtype,
    ) -> None:
        """How far the written weights are from the trained ones, in the chosen entries and, where the base
        itself is written in another type than it was trained in, in all others.
        """
        largest = float((folded_OK.double() - trained_OK.double()).abs().max())
        for start in range(0, len(weight_OI) if weight_OI.dtype != trained else 0, ROWS):
            part_OI = weight_OI[start : start + ROWS]
            rounding = (part_OI.to(written).float() - part_OI.to(trained).float()).abs().max()
            largest = max(largest, float(rounding))
        self.stats.largest_difference = max(self.stats.largest_difference, largest)


@contextmanager
def _one_thread() -> Iterator[None]:
    """K entries per row are too few to share among threads, and the writer hashes on a core of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
