"""The CUDA kernels compile for an H100 (sm_90) without one, and what they compile to is what they are for."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sm90.py"
WIDE = "ld.global.v4.b32"  # 16 bytes of a lane at once


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `benchmarks/sm90.py` finds, in a process without TRITON_INTERPRET."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--show"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return made


@pytest.fixture(scope="module")
def ptx(kernels: dict[str, dict[str, Any]]) -> dict[str, dict[str, int]]:
    return {name: kernel["ptx"] for name, kernel in kernels.items()}


def test_registers_do_and_programs_fit_side_by_side(kernels: dict[str, dict[str, Any]]) -> None:
    from neuroada_cli.delta.triton_grad import TILE

    older = Version(version("triton")) < Version("3.9")  # 3.6 spills two registers of the kernel by columns
    for name, kernel in kernels.items():
        # the buckets' sums fill all registers: what is spilled is read once for thousands of numbers
        assert kernel["spilled_bytes"] <= (64 if name.startswith("buckets") else 8 * older), name
        if name.startswith("columns"):
            assert kernel["resident"] >= TILE.resident, name  # what the launch counts on


def test_loads_are_vectors(ptx: dict[str, dict[str, int]]) -> None:
    for kernel in ("transpose", "columns K=1", "columns K=20", "rows K=1", "rows K=20"):
        assert WIDE in ptx[kernel], ptx[kernel]
        assert not {"ld.global.b16", "ld.global.u16"} & ptx[kernel].keys(), ptx[kernel]
    assert "st.global.v4.b32" in ptx["transpose"]


def test_k_is_unrolled_and_lanes_are_added_up_once_per_neuron(ptx: dict[str, dict[str, int]]) -> None:
    from neuroada_cli.delta.triton_grad import TILE, TILE_T

    own = TILE.neurons // TILE.warps  # neurons of a warp
    assert (
        ptx["columns K=20"]["shfl.sync.bfly.b32"] == 4 * own * 5
    )  # four k in flight, 32 lanes in five steps
    # of each of the four k, 16 bytes for every 256 tokens of each neuron
    assert ptx["columns K=20"][WIDE] >= 4 * own * (TILE_T // 256)


def test_words_of_four_tokens_are_looked_up_in_shared_memory(ptx: dict[str, dict[str, int]]) -> None:
    from neuroada_cli.delta.triton_grad import ROW_WARPS

    assert ptx["rows K=1"]["ld.shared.b64"] == 4096 // (32 * ROW_WARPS)


def test_both_sides_of_a_connection_are_looked_up_and_tiles_read_by_vectors(
    ptx: dict[str, dict[str, int]],
) -> None:
    from neuroada_cli.delta.triton_buckets import SLOTS, WARPS

    assert ptx["buckets K=20"]["ld.shared.b64"] == 2 * SLOTS // (32 * WARPS)
    assert not {"ld.global.b16", "ld.global.u16"} & ptx["buckets K=20"].keys()


def test_folding_rounds_to_nearest(ptx: dict[str, dict[str, int]]) -> None:
    """Which Triton's interpreter does not."""
    rounding = [name for name in ptx["update"] if re.fullmatch(r"cvt.*\.bf16(x2)?\.f32", name)]
    assert rounding
    assert all(".rn" in name for name in rounding)
