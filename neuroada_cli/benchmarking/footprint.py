"""The memory of one method at a time, and the largest batch that fits into a budget.

Unlike time, memory is measured alone: one model, one method. On the CPU it is the bytes of live tensors, and
beside it the resident set of the whole process; on CUDA it is the allocator's own peak.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from neuroada_cli.benchmarking.peers import folds
from neuroada_cli.benchmarking.steps import (
    Contender,
    Guest,
    RealRows,
    flow_to_embeddings,
    one_step,
    random_batch,
)
from neuroada_cli.data.batch import Batch
from neuroada_cli.loop.loss import LOSSES
from neuroada_cli.memory import (
    AllocatorBytes,
    Breakdown,
    StepMemory,
    TensorBytes,
    copy_structure,
    model_tensors,
    storage_bytes,
)
from neuroada_cli.methods.protocol import Method

LARGEST = 1 << 16  # rows; a budget that holds more is no constraint


@dataclass(frozen=True)
class Footprint:
    """memory of a step at the bench's batch. resident: peak bytes of the whole process, None on CUDA.

    fits  rows of the largest batch within the budget (None without a budget), and its samples per second
    """

    memory: Breakdown
    resident: int | None
    fits: int | None = None
    fits_samples_per_s: float | None = None


@dataclass(frozen=True)
class Load:
    """What a step is fed: rows of random tokens of one length, or real ones.

    pairs  for an encoder-decoder: as many tokens for either side
    """

    vocabulary: int
    kind: str
    rows: int
    sequence: int
    device: str
    real: RealRows | None = None
    pairs: bool = False

    def batch(self, rows: int) -> Batch:
        if self.real is not None:
            return self.real.batch(rows, self.device)
        return random_batch(self.vocabulary, self.kind, rows, self.sequence, self.device, pairs=self.pairs)


def footprint(
    name: str,
    method: Method,
    base: nn.Module,
    indices: Mapping[str, Tensor],
    load: Load,
    budget: int | None = None,
) -> Footprint:
    """Measure a fresh `method` alone on the weights of `base`, which hold the same values afterwards.

    (Full fine-tuning trains them and leaves them a hair's breadth away: measure it last.)
    """
    gc.collect()
    model = copy_structure(base, lambda tensor: tensor.detach())
    model.train()
    flow_to_embeddings(model)
    guest = Guest(model, indices if folds(name) else {})
    step = StepMemory(model, method, lambda: method.attach(model, indices), _meter(model, load.device))

    def run(rows: int, steps: int) -> Breakdown:
        batch = load.batch(rows)
        return step.run(lambda: LOSSES[load.kind](model, batch)[0], steps)

    resident: list[Breakdown] = []
    peak = resident_peak(lambda: resident.append(run(load.rows, 2)), load.device)
    memory = resident[0]
    fits = speed = None
    if budget is not None:
        fits = largest_batch(lambda rows: _bytes_or_none(run, rows), budget, {load.rows: memory.peak})
    guest.leave()
    if fits:
        speed = _samples_per_s(Contender(name, None, method, model, step.optimizer, guest), load, fits)
    return Footprint(memory, peak, fits, speed)


def largest_batch(peak_at: Callable[[int], int | None], budget: int, known: Mapping[int, int]) -> int:
    """The most rows whose peak is within the budget; 0 when one row is too much already.

    peak_at  bytes at so many rows, None when they do not fit into the machine
    known    rows -> bytes, measured already
    Memory is nearly a straight line in the rows, so the next guess is where the line through the last two
    measurements meets the budget; halving between what fits and what does not guards it.
    """
    points = dict(known)
    fits = max((rows for rows, size in points.items() if size <= budget), default=0)
    too_much = min((rows for rows, size in points.items() if size > budget), default=LARGEST + 1)
    failed = False
    while too_much - fits > 1:
        guess = (fits + too_much) // 2 if failed else _guess(points, budget)
        guess = min(max(guess, fits + 1), too_much - 1)
        size = peak_at(guess)
        failed = size is None
        if size is not None:
            points[guess] = size
        if size is not None and size <= budget:
            fits = guess
        else:
            too_much = guess
    return fits


def _guess(points: Mapping[int, int], budget: int) -> int:
    """Where the line through the two measurements nearest to the budget meets it; of one: half or double."""
    nearest = sorted(points, key=lambda rows: abs(points[rows] - budget))[:2]
    if len(nearest) < 2:
        rows = nearest[0]
        return 2 * rows if points[rows] <= budget else rows // 2
    low, high = sorted(nearest)
    slope = max(1.0, (points[high] - points[low]) / (high - low))
    return int(low + (budget - points[low]) / slope)


def _bytes_or_none(run: Callable[[int, int], Breakdown], rows: int) -> int | None:
    try:
        return run(rows, 1).peak
    except torch.OutOfMemoryError:
        gc.collect()
        torch.cuda.empty_cache()
        return None


def _samples_per_s(entry: Contender, load: Load, rows: int) -> float:
    """Of the median of three steps after one that is not counted."""
    batch = load.batch(rows)
    seconds = [one_step(entry, batch, load.kind) for _ in range(4)]
    return rows / statistics.median(seconds[1:])


def _meter(model: nn.Module, device: str) -> TensorBytes | AllocatorBytes:
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        return AllocatorBytes(storage_bytes(model_tensors(model)), torch.device(device))
    return TensorBytes()


def resident_peak(run: Callable[[], None], device: str) -> int | None:
    """Peak resident bytes of this process while `run` runs (Linux; None elsewhere and on CUDA).

    Includes Python, the libraries and the base weights. Freed memory is given back first, so that an
    earlier method's peak is not counted again.
    """
    if not sys.platform.startswith("linux") or device != "cpu":
        run()
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        with open("/proc/self/clear_refs", "wb") as control:
            control.write(b"5")  # resets VmHWM
    except OSError:
        run()
        return None
    run()
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    high = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    return int(high.split()[1]) * 1024 if high else None
