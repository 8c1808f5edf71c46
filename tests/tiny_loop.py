"""A training of a few steps on a tiny model, by the real loop, for every method, base and target set.

What relations between trainings are tested with (`tests/metamorphic`): no files but a base's and checkpoints,
no tokenizer, so that a run takes a tenth of a second.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from conftest import pico_bert, pico_llama
from tiny_choice import selected
from torch import Tensor, nn

from neuroada_cli import hub
from neuroada_cli.adapter.folder import Adapter, open_adapter, read_adapter
from neuroada_cli.data.batch import IGNORED, Encoded
from neuroada_cli.loop import optimizer_state
from neuroada_cli.loop.loop import Checkpoints, Progress, Settings, TrainData, train
from neuroada_cli.loop.optim import OptimSettings
from neuroada_cli.loop.step import StepStats
from neuroada_cli.methods import METHODS
from neuroada_cli.methods.protocol import Method
from neuroada_cli.methods.state import MethodState
from neuroada_cli.selection.criteria import choose
from neuroada_cli.selection.file import Selection
from neuroada_cli.training.checkpoint import RunCheckpoints

STEPS, BATCH, ROWS = 4, 4, 12  # an epoch is three steps, so the second one has begun
VOCABULARY, DROPOUT, TILE, K = 96, 0.1, 8, 2
WIDE = {"hidden_size": 128, "intermediate_size": 384, "max_position_embeddings": 128}
BASES: dict[str, tuple[str, str | None]] = {  # name -> data type, quantization
    "fp32": ("fp32", None),
    "bf16": ("bf16", None),
    "nf4": ("bf16", "nf4"),
    "int8": ("bf16", "int8"),
}
TARGETS: dict[str, tuple[str, ...]] = {
    "one kind": ("q_proj",),
    "all-linear": ("all-linear",),
    "tied head": ("lm_head", "up_proj"),
    "untied head": ("lm_head", "up_proj"),
}
# beside every method as it is: what changes its course; name -> (method, what it is built with, settings)
WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, {}, {}) for name in METHODS},
    "neuroada in bf16": ("neuroada", {"delta_dtype": "bf16"}, {}),
    "neuroada choosing anew": ("neuroada", {"reselects": True}, {"reselect_every": 2}),
}


@dataclass(frozen=True)
class Case:
    """One row of the table; way is a key of WAYS, base of BASES, targets of TARGETS.

    wide  layers and rows so large that torch gives a part of each operation to every thread
    """

    way: str
    base: str
    targets: str
    wide: bool = False

    def __str__(self) -> str:
        return f"{self.way}, {self.base}, {self.targets}"

    @property
    def method(self) -> str:
        return WAYS[self.way][0]

    @property
    def classifies(self) -> bool:
        return METHODS[self.method].only_fresh

    @property
    def task(self) -> hub.ModelTask:
        return "sequence-classification" if self.classifies else "causal-lm"

    @property
    def tied(self) -> bool:
        return self.targets == "tied head"


def cases() -> list[Case]:
    """Every method on every base it trains on, with every target set that makes a difference to it."""
    return [case for case in every_case() if not refused(case)]


def every_case() -> list[Case]:
    return [
        Case(way, base, targets)
        for way, (method, _, _) in WAYS.items()
        for base in BASES
        for targets in (TARGETS if METHODS[method].chosen or METHODS[method].added else ["all-linear"])
    ]


def refused(case: Case) -> bool:
    """Whether a recipe says that it cannot be (`tests/metamorphic/test_refused.py`)."""
    quantized = BASES[case.base][1] is not None
    return quantized and (case.way == "neuroada choosing anew" or not METHODS[case.method].quantized)


def packs(case: Case) -> bool:
    return METHODS[case.method].packs and not case.classifies


def covered(wide: bool = False) -> list[ParameterSet]:
    """The cases as parameters of a test. All but a few are slow: what stays holds every pair of a way and a
    base, of a base and a target set, and of a way and a target set. Of the wide ones, which take seconds,
    one for every way stays.
    """
    every = [replace(case, wide=wide) for case in cases() if not wide or case.targets == "all-linear"]
    missing = {pair for case in every for pair in _pairs(case, wide)}
    quick: set[Case] = set()
    while missing:
        best = max(every, key=lambda case: len(missing & _pairs(case, wide)))
        missing -= _pairs(best, wide)
        quick.add(best)
    slow = [pytest.mark.slow]
    return [pytest.param(case, id=str(case), marks=[] if case in quick else slow) for case in every]


def _pairs(case: Case, wide: bool) -> set[tuple[str, ...]]:
    if wide:
        return {(case.way,), (case.base,)}
    return {(case.way, case.base), (case.base, "on", case.targets), (case.way, "on", "", case.targets)}


@cache
def rows(classifies: bool, wide: bool, count: int = ROWS, seed: int = 3) -> tuple[Encoded, ...]:
    """Rows of different lengths, half of each a prompt; the same ones every time."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        length = (80 if wide else 12) + (5 * number) % 9
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        half = len(ids) // 2
        labels = number % 2 if classifies else [IGNORED] * half + ids[half:]
        found.append(Encoded(ids, labels, number, prompt=half))
    return tuple(found)


@dataclass
class Outcome:
    """What a training leaves.

    start    all that the method may change, by its name in a checkpoint, before the first step
    learnt   the same after the last
    moments  the optimizer's state
    """

    start: dict[str, Tensor]
    learnt: dict[str, Tensor]
    moments: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def bits(self) -> dict[str, Any]:
        """Everything, to be compared exactly."""
        tensors = self.learnt | {f"moments of {name}": tensor for name, tensor in self.moments.items()}
        held = {name: (tensor.dtype, tuple(tensor.shape), raw(tensor)) for name, tensor in tensors.items()}
        return held | {"losses": self.losses, "norms": self.norms}

    def change(self) -> Tensor:
        """Learnt - start, all of it in one row of fp64; deltas at new places began at 0."""
        found = []
        for name, tensor in self.learnt.items():
            began = self.start.get(name)
            same = began is not None and began.shape == tensor.shape
            found.append((tensor.double() - began.double() if same else tensor.double()).reshape(-1))
        return torch.cat(found)


def state_of(method: Method, model: nn.Module) -> dict[str, Tensor]:
    """All that a checkpoint would hold of it, copied."""
    state = method.state(model)
    found = {**state.deltas, **state.whole, **{f"exact {name}": t for name, t in state.exact.items()}}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


class Said:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.evaluated: list[int] = []
        self.best: list[int] = []

    def step(self, stats: StepStats, total: int) -> None:
        self.losses.append(stats.loss)
        self.norms.append(stats.grad_norm)

    def evaluation(self, step: int, evaluation: object, is_best: bool) -> None:
        self.evaluated.append(step)
        self.best += [step] * is_best


class NoCheckpoints:
    """A run that is not saved."""

    def save(self, *_: object) -> None:
        pass

    def restore(self, *_: object) -> Progress:
        return Progress()


@dataclass
class Bench:
    """Bases of a table, each made and read once; `run` trains a copy.

    said  of the last run
    """

    room: Path
    said: Said = field(default_factory=Said)
    _bases: dict[tuple[object, ...], hub.LoadedModel] = field(default_factory=dict)
    _selections: dict[tuple[object, ...], Selection] = field(default_factory=dict)

    def folder(self, case: Case) -> Path:
        kind = "encoder" if case.classifies else "tied" if case.tied else "plain"
        place = self.room / f"{kind}{'-wide' * case.wide}"
        if not place.exists():
            sizes = {"initializer_range": 0.1} | (WIDE if case.wide else {})
            # with biases, so that BitFit has something to train
            made = pico_bert(**sizes).bert if case.classifies else pico_llama(
                case.tied, VOCABULARY, attention_bias=True, **sizes
            )  # fmt: skip
            made.save_pretrained(place)
        return place

    def base(self, case: Case, attention: str | None = None) -> hub.LoadedModel:
        key = self.folder(case), case.base, attention
        if key not in self._bases:
            dtype, quantization = BASES[case.base]
            self._bases[key] = hub.load_model(
                key[0], case.task, dtype, num_labels=2 if case.classifies else None, attention=attention,
                quantization=quantization,
            )  # fmt: skip
        kept = self._bases[key]
        return hub.LoadedModel(copy.deepcopy(kept.model), kept.fresh, kept.folder)

    def selection(self, case: Case, k: int = K, criterion: str = "magnitude") -> Selection:
        tile = TILE if METHODS[case.method].tiles else None
        key = self.folder(case), case.base, case.targets, k, criterion, tile
        if key not in self._selections:
            self._selections[key] = selected(
                self.folder(case), TARGETS[case.targets], k, criterion, 0, BASES[case.base][1], case.task,
                2 if case.classifies else None, tile,
            )  # fmt: skip
        return self._selections[key]

    def run(
        self,
        case: Case,
        dropout: float = DROPOUT,
        before: Callable[[nn.Module], object] = lambda model: None,
        attention: str | None = None,
        saved_in: Path | None = None,
        source: Path | None = None,
        keep: int = 99,
        validation: int = 0,
        **settings: Any,
    ) -> Outcome:
        """Train for STEPS steps.

        before    what happens to the base before the method is attached
        saved_in  a run folder for checkpoints; source: the one of them to go on from; keep: so many newest
        """
        _, built, own = WAYS[case.way]
        loaded = self.base(case, attention)
        selection = read_adapter(source).selection if source else self.selection(case)
        model = loaded.model
        before(model)
        method = METHODS[case.method].build({"rank": 2}, **built)
        method.attach(model, selection.indices, loaded.fresh)
        start = state_of(method, model)
        drop(model, dropout)
        data = self._data(case, validation)
        chosen = {"epochs": 2, "max_steps": STEPS, "batch_size": BATCH, **own, **settings}
        optim = OptimSettings(1e-2, weight_decay=0.1, warmup_steps=1)
        checkpoints: Checkpoints = NoCheckpoints()
        if saved_in is not None:
            checkpoints = self._checkpoints(case, selection, saved_in, source, keep)
        self.said = Said()
        optimizers: list[torch.optim.Optimizer] = []
        progress = train(
            model, method, data, Settings(optim, **chosen), _Watched(checkpoints, optimizers), self.said,
            selection.indices if METHODS[case.method].chosen else {}, partial(choose, k=K),
        )  # fmt: skip
        assert progress.step == chosen["max_steps"]
        moments = optimizer_state.tensors_of(optimizers[0])
        return Outcome(start, state_of(method, model), moments, self.said.losses, self.said.norms)

    def _data(self, case: Case, validation: int) -> TrainData:
        kind = "classification" if case.classifies else "generation"
        held_out = rows(case.classifies, case.wide, validation, 4)
        return TrainData(rows(case.classifies, case.wide), held_out, kind, 0)

    def _checkpoints(
        self, case: Case, selection: Selection, run_dir: Path, source: Path | None, keep: int
    ) -> RunCheckpoints:
        dtype, quantization = BASES[case.base]
        settings = {"method": case.method, "dtype": dtype, "quantization": quantization}
        settings["peer"] = {"rank": 2, "alpha": None, "dropout": 0.0, "positions": 7}  # type: ignore[assignment]

        def adapter(state: MethodState) -> Adapter:
            chosen = selection
            if state.indices is not None:
                longest = max(index.shape[1] for index in state.indices.values())
                chosen = Selection(
                    state.indices, longest, selection.criterion, selection.fingerprint, selection.tied
                )
            deltas = state.deltas or {name: torch.zeros(i.shape) for name, i in chosen.indices.items()}
            return Adapter(chosen, deltas, state.whole, "base/model", None, case.task, settings)

        return RunCheckpoints(
            run_dir, adapter, None, "name: tiny\n", {}, {}, keep, lambda: 0, lambda _: None,
            open_adapter(source) if source else None,
        )  # fmt: skip


class _Watched:
    """Checkpoints that also hand out the run's optimizer, which the loop makes for itself."""

    def __init__(self, checkpoints: Checkpoints, optimizers: list[torch.optim.Optimizer]) -> None:
        self._checkpoints, self._optimizers = checkpoints, optimizers

    def save(self, progress: Progress, *given: Any) -> None:
        self._checkpoints.save(progress, *given)

    def restore(self, model: nn.Module, method: Any, optimizer: torch.optim.Optimizer) -> Progress:
        self._optimizers.append(optimizer)
        return self._checkpoints.restore(model, method, optimizer)


def drop(model: nn.Module, share: float) -> None:
    """Dropout wherever the model has a place for it: only that shows whether random states are disturbed."""
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = share
        if isinstance(module, nn.Dropout):
            module.p = share
