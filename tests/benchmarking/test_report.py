"""What is committed under benchmarks/ fits together."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Loads a script of benchmarks/ by name, as running it would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - before:
        if name in ("common", "op", "gpu_kernels", "gpu_loads"):
            del sys.modules[name]


def test_every_target_runs_a_script_that_is_there() -> None:
    targets = (BENCHMARKS / "targets.mk").read_text(encoding="utf-8")
    named = re.findall(r"benchmarks/(\w+\.py)", targets)
    assert set(named) >= {"op.py", "cpu.py", "io.py", "gpu.py"}
    assert all((BENCHMARKS / name).is_file() for name in named)
    assert "include benchmarks/targets.mk" in (BENCHMARKS.parent / "Makefile").read_text(encoding="utf-8")


def test_the_gpu_scripts_check_holds_for_the_cpus_back_ends(scripts: Any) -> None:
    rows = scripts("gpu").check(torch.device("cpu"))
    assert {row["backend"] for row in rows} >= {"tiled", "gathered", "sampled_addmm"}
    assert all(row["ok"] and row["repeatable"] for row in rows)


def test_the_ops_ratios_and_winner(scripts: Any) -> None:
    row = scripts("op").measure((32, 16, 24), 2, torch.float32, torch.device("cpu"), rounds=3)
    assert row["kind"] == "cpu float32"
    assert row["fastest"] in row["ratios"]
    assert row["fastest"] != "dense_oracle"
    assert row["ratios"][row["fastest"]] == min(r for n, r in row["ratios"].items() if n != "dense_oracle")
