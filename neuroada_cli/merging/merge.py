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
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.adapter.folder import Adapter
from neuroada_cli.delta.fold import fold_entries, write_entries
from neuroada_cli.delta.index import filled, size
from neuroada_cli.delta.layout import layout_of
from neuroada_cli.delta.quantized import round_trip
from neuroada_cli.delta.targets import is_linear, shapes_of, target_of, targets_of
from neuroada_cli.hub.fingerprint import WHOLE_BYTES
from neuroada_cli.hub.stored import WEIGHT_DTYPES, check_weight, main_dtype, stored_names
from neuroada_cli.merging.finite import _finite_cast, _refuse_broken, _refuse_overflow
from neuroada_cli.merging.fit import refuse_headless, whole_names
from neuroada_cli.selection.file import check_read, check_shapes

ROWS = 1024  # compared at once, so that comparing takes no copies of a whole tensor


@dataclass(frozen=True)
class Planned:
    """One tensor of the result.

    name    in the result; source is its name in the base, None for a tensor that the base lacks
    module  the target whose deltas are folded into it
    whole   the trained tensor that takes its place
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    source: str | None = None
    module: str | None = None
    whole: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


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

    base      the base's files;  skeleton  its module graph (names, ties, Conv1D)
    adapter   what to fold
    trained   the data type that training saw
    target    the data type of the result
    rename    the result is a classifier: it gets the model's own names, and needs a head
    requantize  quantise and dequantise the base's linear weights first, as training on them did
    Raises ModelError when the adapter's modules or parameters do not fit the base.
    """

    def __init__(
        self,
        base: hub.Weights,
        skeleton: nn.Module,
        adapter: Adapter,
        trained: torch.dtype,
        target: torch.dtype,
        rename: bool = False,
        requantize: str | None = None,
    ) -> None:
        self.base = base
        self.adapter = adapter
        self.trained = trained
        self.target = target
        self.stats = FoldStats()
        self._skeleton = skeleton
        self._modules = dict(skeleton.named_modules())
        self._requantize = requantize
        self._packed = self._packed_names() if requantize else {}
        # files that are in the target type already keep odd tensors (fp32 norms) byte for byte
        self.cast = main_dtype(base) != target
        self.plan = self._make_plan(rename)
        largest = max((base.info(entry.source).nbytes for entry in self.plan if entry.source), default=0)
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
            file = self.base.info(entry.source).file if entry.source else previous
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
        _refuse_broken(weight, entry.source)
        if entry.source in self._packed:
            weight = self._round_trip(weight, self._packed[entry.source])
        if entry.module is None:
            return _finite_cast(weight, entry.dtype, entry.name)
        return self._fold(entry, entry.module, weight)

    def _read(self, source: str) -> Tensor:
        """A tensor of the base, the same as when the connections were chosen, as far as it was read then."""
        weight = self.base.read_into(source, self._buffer)
        known = check_read(self.adapter.selection.fingerprint, source, weight, self.base.folder)
        self.stats.compared += known or weight.nbytes <= WHOLE_BYTES
        self.stats.read += 1
        return weight

    def _whole(self, entry: Planned, tensor: Tensor) -> Tensor:
        cast = _finite_cast(tensor, entry.dtype, entry.name)
        before = None if entry.source is None else self._read(entry.source)
        self.stats.whole += 1
        self.stats.replaced += before is None or not torch.equal(before.to(entry.dtype), cast)
        return cast

    def _round_trip(self, weight: Tensor, module: nn.Module) -> Tensor:
        layout = layout_of(module)
        return layout.rows(round_trip(layout.rows(weight), str(self._requantize), self.trained))

    def _packed_names(self) -> dict[str, nn.Module]:
        """Stored name -> linear layer, for all layers that loading quantises: every one except heads."""
        heads = hub.default_exclude(self._skeleton)
        prefix = str(self._skeleton.base_model_prefix)
        linear = {n: m for n, m in self._modules.items() if is_linear(m) and n not in heads}
        stored = {n: hub.stored_name(self.base, f"{n}.weight", prefix) for n in linear}
        return {name: linear[module] for module, name in stored.items() if name is not None}

    def _fold(self, entry: Planned, module: str, weight: Tensor) -> Tensor:
        index_OK, layout = filled(self.adapter.selection.indices[module])[0], layout_of(self._modules[module])
        delta_OK = self.adapter.deltas[module]
        weight_OI = layout.rows(weight)
        base_OK = weight_OI.gather(1, index_OK.long())
        folded_OK = trained_OK = fold_entries(base_OK.to(self.trained), delta_OK, self.trained)
        if entry.dtype != self.trained:
            folded_OK = fold_entries(base_OK, delta_OK, entry.dtype)
            self._note_difference(weight_OI, trained_OK, folded_OK)
        _refuse_overflow(folded_OK, module, entry.dtype)
        self.stats.entries += size(self.adapter.selection.indices[module])
        self._count(base_OK.to(entry.dtype), folded_OK, delta_OK)
        out = _finite_cast(weight, entry.dtype, entry.name)
        write_entries(out, index_OK, folded_OK, layout)
        return out

    def _count(self, kept_OK: Tensor, folded_OK: Tensor, delta_OK: Tensor) -> None:
        same_OK = kept_OK == folded_OK
        unchanged = int(same_OK.sum())
        self.stats.tensors += 1
        self.stats.changed += same_OK.numel() - unchanged
        self.stats.lost += int((same_OK & (delta_OK != 0)).sum()) if unchanged else 0
        self.stats.largest_delta = max(self.stats.largest_delta, float(delta_OK.abs().max()))

    def _note_difference(self, weight_OI: Tensor, trained_OK: Tensor, folded_OK: Tensor) -> None:
        """How far the written weights are from the trained ones, in the chosen entries and, where the base
        itself is written in another type than it was trained in, in all others.
        """
        largest = float((folded_OK.double() - trained_OK.double()).abs().max())
        for start in range(0, len(weight_OI) if weight_OI.dtype != self.trained else 0, ROWS):
            part_OI = weight_OI[start : start + ROWS]
            rounding = (part_OI.to(self.target).float() - part_OI.to(self.trained).float()).abs().max()
            largest = max(largest, float(rounding))
        self.stats.largest_difference = max(self.stats.largest_difference, largest)

    # -----------------------------------------------------------------------------------------------

    def _make_plan(self, rename: bool) -> list[Planned]:
        folds = self._folded_names()
        whole = whole_names(self.base, self._skeleton, self.adapter.whole)
        if rename:
            refuse_headless(self.base, self._skeleton, self.adapter.whole)
        names = self._renamed() if rename else {name: name for name in self.base}
        plan = []
        for source, name in names.items():
            info = self.base.info(source)
            if source in whole:
                plan.append(
                    Planned(name, self.target, tuple(whole[source].shape), source, whole=whole[source])
                )
            elif source in folds:
                plan.append(Planned(name, self.target, info.shape, source, folds[source]))
            else:
                plan.append(Planned(name, self._dtype(info.dtype), info.shape, source))
        for name, tensor in whole.items():
            if name not in self.base:
                plan.append(Planned(name, self.target, tuple(tensor.shape), whole=tensor))
        return plan

    def _dtype(self, stored: torch.dtype) -> torch.dtype:
        return self.target if self.cast and stored in WEIGHT_DTYPES else stored

    def _folded_names(self) -> dict[str, str]:
        """Stored name -> target module; every stored copy of a tied weight is folded."""
        check_shapes(self.adapter.selection, shapes_of(targets_of(self._skeleton)), str(self.base.folder))
        folds: dict[str, str] = {}
        for module in self.adapter.selection.indices:
            for stored in stored_names(self.base, self._skeleton, module):
                check_weight(self.base, stored, module, target_of(self._skeleton, module))
                folds[stored] = module
        return folds

    def _renamed(self) -> dict[str, str]:
        """Stored name -> the model's own name, in file order, without what the model does not use.

        A base model's files name "encoder.layer.0…" what a classifier calls "bert.encoder.layer.0…". When
        the model's names cannot all be found, the files' names stay.
        """
        prefix = str(self._skeleton.base_model_prefix)
        names: dict[str, str] = {}
        for parameter in self._skeleton.state_dict():
            stored = hub.stored_name(self.base, parameter, prefix)
            if stored is not None:
                names.setdefault(stored, parameter)
            elif parameter not in self.adapter.whole:
                return {name: name for name in self.base}
        return {name: names[name] for name in self.base if name in names}


@contextmanager
def _one_thread() -> Iterator[None]:
    """K entries per row are too few to share among threads, and the writer hashes on a core of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
