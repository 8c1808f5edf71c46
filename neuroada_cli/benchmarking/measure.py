"""One bench from a model to its rows: time interleaved, then memory method by method.

O = output neurons, I = inputs, K = chosen inputs per neuron
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.benchmarking.footprint import Footprint, Load, footprint
from neuroada_cli.benchmarking.peers import make, owns_weights, takes_k
from neuroada_cli.benchmarking.rows import BenchRow
from neuroada_cli.benchmarking.steps import (
    Contender,
    RealRows,
    Timing,
    clock_of,
    contender,
    flow_to_embeddings,
    interleave,
    timing,
)
from neuroada_cli.delta.layout import layer_shape
from neuroada_cli.delta.quantized import dequantize, is_quantized
from neuroada_cli.delta.targets import Target, find_targets, target_of
from neuroada_cli.loop.loss import count_targets, decoder_inputs
from neuroada_cli.machine.allocator import keeping_freed_memory
from neuroada_cli.memory import predict
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.choice import check_k
from neuroada_cli.selection.criteria import choose

UNTRACEABLE = (RuntimeError, NotImplementedError, ValueError, TypeError)


@dataclass(frozen=True)
class Subject:
    """What is trained. kind is the loss's, task the model's; name and layers describe it, depth is the uncut
    number.
    """

    name: str
    model: nn.Module
    targets: list[str]
    kind: str
    layers: int
    depth: int
    task: hub.ModelTask = "causal-lm"

    @property
    def parameters(self) -> int:
        packed = {
            id(module.weight): layer_shape(module) for module in self.model.modules() if is_quantized(module)
        }
        return sum(math.prod(packed.get(id(p), p.shape)) for p in self.model.parameters())

    @property
    def quantized(self) -> bool:
        return any(map(is_quantized, self.model.modules()))


@dataclass(frozen=True)
class BenchPlan:
    """What is measured. peers are keys of PEERS; ks are the K of `neuroada`, the peers take the largest.

    sequence  tokens of every random row, or of the longest of the real ones
    predicts  whether memory is predicted beside what is measured
    """

    peers: tuple[str, ...]
    ks: tuple[int, ...]
    batch: int
    sequence: int
    rounds: int
    warmup: int
    device: str
    dtype: torch.dtype
    budget: int | None = None
    real: RealRows | None = None
    predicts: bool = True

    def entries(self) -> list[tuple[str, int | None]]:
        """(method, K) in the order of the table: the floor, ours, the peers, full fine-tuning last."""
        peers = [name for name in dict.fromkeys(self.peers) if name not in ("floor", "neuroada")]
        peers.sort(key=owns_weights)
        ours: list[tuple[str, int | None]] = [("neuroada", k) for k in dict.fromkeys(self.ks)]
        return [("floor", None), *ours, *((name, self._k_of(name)) for name in peers)]

    def _k_of(self, peer: str) -> int | None:
        return max(self.ks) if takes_k(peer) else None


def all_targets(
    model: nn.Module,
    include: Sequence[str] = ("all-linear",),
    exclude: Sequence[str] = (),
    layers: Sequence[int] | None = None,
) -> list[str]:
    """Names of the layers to adapt. Raises ValueError as `find_targets` does."""
    parts = hub.parts_of(model)
    return list(find_targets(model, include, exclude, layers, hub.left_out(model, parts), parts))


def measure(
    subject: Subject, plan: BenchPlan, on_progress: Callable[[str], None] | None = None
) -> list[BenchRow]:
    """A row per entry of the plan, the floor first.

    on_progress  told in a few words what is going on
    Raises RecipeError for a K that is larger than a layer's inputs, ResourceError for a missing package.
    """
    tell = on_progress or (lambda _: None)
    for name, _ in plan.entries():
        make(name)  # a missing package is told before anything is measured
    indices = _indices(subject, plan)
    with keeping_freed_memory() if plan.device == "cpu" else contextlib.nullcontext():  # as `train` does
        timings, trainable = _times(subject, plan, indices, tell)
    rows = []
    for place, (name, k) in enumerate(plan.entries()):
        tell(f"memory of {name}" + (f" K={k}" if k else ""))
        here = indices[k or max(plan.ks)]
        load = _load(subject, plan)
        predicted = _predicted(subject, plan, name, k) if plan.predicts else None
        print_ = footprint(name, make(name), subject.model, here, load, plan.budget)
        rows.append(_row(name, k, timings[place], trainable[place], print_, predicted, plan, subject))
    return rows


def _indices(subject: Subject, plan: BenchPlan) -> dict[int, dict[str, Tensor]]:
    """K -> module name -> the columns of largest magnitude."""
    check_k({name: target_of(subject.model, name).shape for name in subject.targets}, max(plan.ks))
    weights = {name: _weight_OI(target_of(subject.model, name)) for name in subject.targets}
    return {k: {name: choose(weight_OI, k) for name, weight_OI in weights.items()} for k in plan.ks}


def _weight_OI(target: Target) -> Tensor:
    if is_quantized(target.owner):
        return dequantize(target.owner, torch.float32)
    return target.layout.rows(target.weight.detach())


def _times(
    subject: Subject,
    plan: BenchPlan,
    indices: Mapping[int, Mapping[str, Tensor]],
    tell: Callable[[str], None],
) -> tuple[list[Timing], list[int]]:
    contenders: list[Contender] = []
    for name, k in plan.entries():
        tell(f"attaching {name}")
        torch.manual_seed(0)
        here = indices[k or max(plan.ks)]
        contenders.append(contender(name, k, make(name), subject.model, here))
    batch = _load(subject, plan).batch(plan.batch)
    total = plan.warmup + plan.rounds

    def on_round(done: int) -> None:
        tell(f"round {done} of {total}")

    interleave(contenders, batch, subject.kind, plan.rounds, plan.warmup, on_round)
    timings = [timing(entry, contenders[0]) for entry in contenders]
    trainable = [entry.trainable for entry in contenders]
    contenders.clear()
    gc.collect()
    return timings, trainable


def _load(subject: Subject, plan: BenchPlan) -> Load:
    pairs = subject.task == "seq2seq-lm"
    vocabulary = _vocabulary(subject.model)
    return Load(vocabulary, subject.kind, plan.batch, plan.sequence, plan.device, plan.real, pairs)


def _vocabulary(model: nn.Module) -> int:
    """Of a model that reads no tokens 0."""
    return int(getattr(model.get_input_embeddings(), "num_embeddings", 0))  # type: ignore[operator]


def _predicted(subject: Subject, plan: BenchPlan, name: str, k: int | None) -> int | None:
    """None on a quantised base, and for what looks at values, so that it cannot be traced: pictures among
    texts, and a peer whose set-up does (a random mask's positions).
    """
    if subject.quantized or (plan.real is not None and plan.real.features and plan.sequence):
        return None
    batch = _load(subject, plan).batch(plan.batch).to("cpu")
    learnt = count_targets(batch.labels_BS) if subject.kind == "generation" else None
    padded = not bool(batch.attention_BS.all())
    try:
        memory = predict(
            subject.model, subject.targets, make(name), k or max(plan.ks), plan.batch, plan.sequence,
            plan.dtype, learnt, device=plan.device, padded=padded, prepare=flow_to_embeddings,
            also={**decoder_inputs(batch), **batch.features},
        )  # fmt: skip
    except UNTRACEABLE:
        if name == "floor" or (name in METHODS and METHODS[name].predictable):
            raise
        return None
    return memory.peak


def _row(
    name: str, k: int | None, time: Timing, trainable: int, memory: Footprint, predicted: int | None,
    plan: BenchPlan, subject: Subject,
) -> BenchRow:  # fmt: skip
    split = memory.memory
    return BenchRow(
        method=name,
        k=k,
        ratio_to_floor=round(time.ratio, 4),
        ratio_low=round(time.low, 4),
        ratio_high=round(time.high, 4),
        step_seconds=time.seconds,
        samples_per_s=plan.batch / time.seconds,
        tokens_per_s=plan.batch * plan.sequence / time.seconds,
        trainable=trainable,
        trainable_share=trainable / subject.parameters,
        peak_bytes=split.peak,
        weights_bytes=split.weights,
        state_bytes=split.state,
        activation_bytes=split.activations,
        predicted_bytes=predicted,
        resident_bytes=memory.resident,
        largest_batch=memory.fits,
        largest_batch_samples_per_s=memory.fits_samples_per_s,
    )


def settings_of(subject: Subject, plan: BenchPlan, dtype: str) -> dict[str, Any]:
    """What is written beside every row. dtype: its name in a recipe."""
    return {
        "model": subject.name,
        "layers": subject.layers,
        "of_layers": subject.depth,
        "parameters": subject.parameters,
        "targets": len(subject.targets),
        "dtype": dtype,
        "device": plan.device,
        "batch": plan.batch,
        "sequence": plan.sequence,
        "rows": plan.real.source if plan.real else "random tokens",
        "rounds": plan.rounds,
        "warmup": plan.warmup,
        "memory_budget": plan.budget,
        "optimizer": "AdamW, clipped to norm 1",
        "clock": clock_of(torch.device(plan.device))[0],
    }
