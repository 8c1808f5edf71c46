"""GLUE's metrics by hand-worked cases, and what happens without their packages."""

from __future__ import annotations

import sys

import pytest

from neuroada_cli.errors import ResourceError
from neuroada_cli.tasks import metrics


def test_by_hand() -> None:
    predictions, labels = [1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]  # 2 true, 1 false positive, 1 false negative
    assert metrics.accuracy(predictions, labels) == pytest.approx(4 / 6)
    assert metrics.f1(predictions, labels) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert metrics.matthews(predictions, labels) == pytest.approx((2 * 2 - 1 * 1) / (3 * 3 * 3 * 3) ** 0.5)
    assert metrics.pearson([1, 2, 3, 5], [2, 4, 6, 10]) == pytest.approx(1)
    assert metrics.pearson([1, 2, 3], [1, 3, 1]) == pytest.approx(0)
    assert metrics.spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)


def test_a_constant_prediction_correlates_with_nothing() -> None:
    for name in ("matthews", "pearson", "spearman", "f1"):
        assert metrics.METRICS[name]([0, 0, 0], [0, 1, 1]) == 0


def test_a_missing_package_is_named_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.require(["matthews", "pearson", "accuracy"])
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ResourceError, match=r"matthews needs .*pip install 'neuroada-cli\[glue\]'"):
        metrics.require(["matthews"])
    metrics.require(["accuracy"])


def test_always_wrong_is_the_opposite_of_always_right() -> None:
    labels = [0, 1, 1, 0, 1]
    assert metrics.matthews(labels, labels) == pytest.approx(1)
    assert metrics.matthews([1 - label for label in labels], labels) == pytest.approx(-1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_single_class_in_rows_and_answers_is_no_warning(name: str) -> None:
    assert metrics.METRICS[name]([1.0] * 4, [1.0] * 4) == (1.0 if name in ("accuracy", "f1") else 0.0)
    assert metrics.METRICS[name]([0.0] * 4, [0.0] * 4) == (1.0 if name == "accuracy" else 0.0)
