"""What a rank needs and sends, predicted from shapes, against what a sharded step takes and sends."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from forked_ranks import in_ranks, shards
from tiny_run import one_thread, tiny_llama_folder  # noqa: F401

from neuroada_cli import hub, memory
from neuroada_cli.benchmarking.ranks import measure
from neuroada_cli.delta.targets import find_targets
from neuroada_cli.methods import METHODS
from neuroada_cli.ranks.group import Ranks

ROWS, TOKENS = 2, 64
CASES: dict[str, dict[str, Any]] = {
    "bf16": {"k": 1, "dtype": torch.bfloat16},
    "fp32": {"k": 20, "dtype": torch.float32},
    "recomputed": {"k": 1, "dtype": torch.bfloat16, "gradient_checkpointing": True},
    "nf4": {"k": 4, "dtype": torch.bfloat16, "quantization": "nf4"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> hub.Base:
    folder = tmp_path_factory.mktemp("llama")
    return hub.open_base(
        tiny_llama_folder(folder, hidden_size=128, intermediate_size=320, num_hidden_layers=3)
    )


@pytest.fixture(scope="module")
def measured(base: hub.Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """Of the first rank, which has the most rows."""

    def work(ranks: Ranks) -> Any:
        found = {}
        for name, case in CASES.items():
            found[name] = dataclasses.asdict(measure(ranks, base, batch=ROWS, sequence=TOKENS, **case))
        return found

    first: dict[str, dict[str, int]] = in_ranks(2, tmp_path_factory.mktemp("told"), work)[0]
    return first


def predicted(
    base: hub.Base,
    processes: int,
    k: int,
    dtype: torch.dtype,
    gradient_checkpointing: bool = False,
    quantization: str | None = None,
    sharded: bool = True,
) -> memory.ProcessBytes:
    model = base.skeleton
    heads = hub.default_exclude(model)
    counts = dict.fromkeys(find_targets(model, heads=heads), k)
    step = memory.predict_step(
        model,
        counts,
        METHODS["neuroada"].build(),
        k,
        ROWS,
        TOKENS,
        dtype,
        gradient_checkpointing=gradient_checkpointing,
    )
    quantized = dict.fromkeys(counts, quantization) if quantization else {}
    return memory.of_process(model, counts, step, processes, sharded, dtype, quantized)


@shards
@pytest.mark.parametrize("case", CASES)
def test_the_peak_within_a_tenth_and_every_byte_that_is_sent(
    base: hub.Base, measured: dict[str, dict[str, int]], case: str
) -> None:
    found = predicted(base, 2, **CASES[case])
    assert found.peak == pytest.approx(measured[case]["peak"], rel=0.1)
    assert found.sent == measured[case]["sent"]


def test_more_processes_hold_less_each_and_together_all(base: hub.Base) -> None:
    one, *more = (predicted(base, n, 1, torch.bfloat16) for n in (1, 2, 4, 8))
    assert one.sent == 0
    for processes, found in zip((2, 4, 8), more, strict=True):
        assert one.weights <= processes * found.weights <= 1.1 * one.weights
        assert found.activations == one.activations
        assert found.sent > 0


def test_whole_models_send_gradients_only(base: hub.Base) -> None:
    """All the same however many processes, but for the sums of K-sized gradients that go round."""
    two, eight = (predicted(base, n, 1, torch.bfloat16, sharded=False) for n in (2, 8))
    assert dataclasses.replace(eight, sent=two.sent) == two
    neurons = sum(target.shape[0] for target in read_targets(base))
    assert two.sent == 2 * 4 * neurons // 2
    assert eight.sent == 2 * 4 * neurons * 7 // 8


def read_targets(base: hub.Base) -> list[Any]:
    return list(find_targets(base.skeleton, heads=hub.default_exclude(base.skeleton)).values())
