"""Evaluating in between changes nothing of what is learnt: every base, method and target set, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from tiny_choice import selected
from tiny_run import one_thread  # noqa: F401
from torch import nn

from neuroada_cli import hub
from neuroada_cli.data.batch import IGNORED, Encoded
from neuroada_cli.loop.loop import Progress, Settings, TrainData, train
from neuroada_cli.loop.optim import OptimSettings
from neuroada_cli.loop.packing import check_packing
from neuroada_cli.loop.step import StepStats
from neuroada_cli.loop.validate import Evaluation
from neuroada_cli.methods import METHODS
from neuroada_cli.methods.protocol import Method
from neuroada_cli.methods.state import MethodState

STEPS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    pico_llama(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, attention_dropout=0.1
    ).save_pretrained(folder)
    return folder


class Nowhere:
    """Checkpoints that are not kept, and a report that keeps the gradients' sizes."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def save(self, *_: object) -> None: ...

    def restore(self, *_: object) -> Progress:
        return Progress()

    def step(self, stats: StepStats, total: int) -> None:
        self.norms.append(stats.grad_norm)

    def evaluation(self, step: int, evaluation: Evaluation, is_best: bool) -> None: ...


def rows(count: int) -> list[Encoded]:
    chance = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 96, (count, 8), generator=chance).tolist()
    return [Encoded(row, [IGNORED] * 4 + row[4:], number, prompt=4) for number, row in enumerate(ids)]


def learnt(
    base: Path, quantization: str | None, dtype: str, name: str, targets: Sequence[str], every: int | None
) -> tuple[MethodState, list[float]]:
    """What three steps learn; with `every`, packing is tried first and every so many steps are evaluated."""
    selection = selected(base, targets, 2, quantization=quantization)
    loaded = hub.load_model(base, "causal-lm", dtype, quantization=quantization)
    model: nn.Module = loaded.model
    method: Method = METHODS[name].build({"rank": 2} if METHODS[name].peer else None)
    method.attach(model, selection.indices, ["lm_head.weight"] if name == "head" else [])
    data = TrainData(rows(6), rows(2) if every else [], "generation", 0)
    if every and METHODS[name].packs:
        check_packing(model, data.train)
    settings = Settings(OptimSettings(lr=1e-2), max_steps=STEPS, batch_size=2, eval_every=every)
    place = Nowhere()
    indices = selection.indices if METHODS[name].chosen else {}
    train(model, method, data, settings, place, place, indices)
    return method.state(model), place.norms


QUANTIZED = [(kind, "bf16", "neuroada") for kind in ("nf4", "fp4", "int8")]
# no bias to train in this model, and no tile chosen
PLAIN = [
    (None, dtype, name) for dtype in ("fp32", "bf16") for name in METHODS if name not in ("bitfit", "smt")
]


@pytest.mark.parametrize("targets", [["q_proj"], ["all-linear"]], ids=["one", "all"])
@pytest.mark.parametrize(("quantization", "dtype", "name"), [*QUANTIZED, *PLAIN])
def test_deltas_with_and_without_evaluations_are_the_same_bits(
    base: Path, quantization: str | None, dtype: str, name: str, targets: list[str]
) -> None:
    if quantization:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    never, norms = learnt(base, quantization, dtype, name, targets, None)
    often, norms_often = learnt(base, quantization, dtype, name, targets, 1)
    assert norms == norms_often
    assert min(norms) > 0
    for part in ("deltas", "whole", "exact"):
        before, after = getattr(never, part), getattr(often, part)
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            assert torch.equal(tensor, after[key]), key
