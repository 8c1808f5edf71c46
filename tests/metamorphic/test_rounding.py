"""What may change a training by rounding only: micro-batches, packing, another way to compute attention.

In fp32 the deltas are compared after several steps; in 16 bits, where one rounding is the size of an update,
the first loss.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from tiny_loop import Bench, Case, Outcome, covered, packs
from tiny_run import one_thread  # noqa: F401

DELTAS = 1e-4  # of their size
# Of about 4.6. A bf16 number is known to 2^-8 of itself, and processors sum in orders of their own.
LOSS, LOSS_IN_16_BITS = 1e-3, 4e-3
OTHERWISE: dict[str, dict[str, Any]] = {
    "micro-batches": {"micro_batch_size": 3},  # of three rows and of one
    "packing": {"packing": True},
    "eager attention": {"attention": "eager"},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def plain(bench: Bench) -> dict[Case, Outcome]:
    """The trainings as they are, as far as they were asked for, without dropout: packing draws others."""
    return {}


def tables() -> list[ParameterSet]:
    """Every case with each way; those that do not pack are refused (test_refused.py)."""
    return [
        pytest.param(case.values[0], way, id=f"{case.id}, {way}", marks=case.marks)
        for case in covered()
        for way in OTHERWISE
        if way != "packing" or packs(case.values[0])
    ]


@pytest.mark.parametrize(("case", "way"), tables())
def test_only_rounding_differs(case: Case, way: str, bench: Bench, plain: dict[Case, Outcome]) -> None:
    if case not in plain:
        plain[case] = bench.run(case, dropout=0.0)
    expected, found = plain[case], bench.run(case, dropout=0.0, **OTHERWISE[way])
    tolerance = LOSS if case.base == "fp32" else LOSS_IN_16_BITS
    assert abs(found.losses[0] - expected.losses[0]) <= tolerance
    if case.base == "fp32" and case.way != "neuroada in bf16":
        change = expected.change()
        assert change.norm() > 0
        assert (found.change() - change).norm() <= DELTAS * change.norm()


def test_the_comparison_finds_what_is_not_rounding(bench: Bench, plain: dict[Case, Outcome]) -> None:
    case = Case("neuroada", "fp32", "all-linear")
    one, other = bench.run(case, dropout=0.0), bench.run(case, dropout=0.0, batch_size=3)
    assert (one.change() - other.change()).norm() > DELTAS * one.change().norm()
    assert torch.equal(one.change(), bench.run(case, dropout=0.0).change())
