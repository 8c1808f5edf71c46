"""The CUDA kernels compile for an H100 (sm_90) without one, and what they compile to is what they are for."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

WIDE = "ld.global.v4.b32"  # 16 bytes of a lane at once


def compiled() -> dict[str, dict[str, int]]:
    """Kernel -> how often its PTX has each instruction; run in a process without TRITON_INTERPRET."""
    import collections

    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from neuroada_cli.delta import triton_kernels as kernels
    from neuroada_cli.delta.triton_grad import PACK, ROW_WARPS, TILE, TILE_T

    def instructions(kernel: Any, types: dict[str, str], unaligned: str, **options: Any) -> dict[str, int]:
        names = kernel.arg_names
        constants = {(names.index(n),): v for n, v in options.items() if n in names}
        signature = {n: types.get(n, "i32") for n in names if n not in options}
        signature |= {n: "constexpr" for n in names if n in options}
        aligned = [n for n in signature if signature[n] != "constexpr" and n not in unaligned.split()]
        attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        given = {n: v for n, v in options.items() if n not in names}
        ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=given).asm["ptx"]
        return dict(collections.Counter(re.findall(r"^\s+(?:@%p\d+ )?([a-z][\w.]*\.[\w.]+)", ptx, re.M)))

    matrices = {
        "g_ptr": "*bf16",
        "xt_ptr": "*bf16",
        "x_ptr": "*bf16",
        "index_ptr": "*i32",
        "out_ptr": "*fp32",
    }
    table = {"table_ptr": "*i64", "settings_ptr": "*fp64", "norm_ptr": "*fp32"}
    odd = "tokens blocks steps layers"
    return {
        "transpose": instructions(kernels.transpose_kernel, matrices, odd, BLOCK_T=128, BLOCK_I=64),
        "columns": instructions(
            kernels.columns_kernel, matrices, odd, K=20, K_PAD=32, UNROLL=4, BLOCK_O=TILE.neurons,
            LANE_T=TILE_T // 2, num_warps=TILE.warps, maxnreg=TILE.registers,
        ),
        "rows": instructions(
            kernels.rows_kernel, matrices, odd, K=1, BLOCK_K=1, BLOCK_O=4096, BLOCK_I=4096, PACK=PACK,
            num_warps=ROW_WARPS,
        ),
        "update": instructions(
            kernels.update_kernel, table, odd, UPDATES=True, CLIPS=True, WEIGHT=kernels.TYPES[torch.bfloat16],
            BLOCK=1024, num_warps=4,
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    script = (
        "import json; from tests.delta.test_triton_compiles import compiled; print(json.dumps(compiled()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return made


def test_loads_are_vectors(ptx: dict[str, dict[str, int]]) -> None:
    for kernel in ("transpose", "columns", "rows"):
        assert WIDE in ptx[kernel], ptx[kernel]
        assert not {"ld.global.b16", "ld.global.u16"} & ptx[kernel].keys(), ptx[kernel]
    assert "st.global.v4.b32" in ptx["transpose"]


def test_k_is_unrolled_and_lanes_are_added_up_once_per_neuron(ptx: dict[str, dict[str, int]]) -> None:
    from neuroada_cli.delta.triton_grad import TILE, TILE_T

    own = TILE.neurons // TILE.warps  # neurons of a warp
    assert ptx["columns"]["shfl.sync.bfly.b32"] == 4 * own * 5  # four k in flight, 32 lanes in five steps
    # of each of the four k, 16 bytes for every 256 tokens of each neuron
    assert ptx["columns"][WIDE] >= 4 * own * (TILE_T // 256)


def test_words_of_four_tokens_are_looked_up_in_shared_memory(ptx: dict[str, dict[str, int]]) -> None:
    from neuroada_cli.delta.triton_grad import ROW_WARPS

    assert ptx["rows"]["ld.shared.b64"] == 4096 // (32 * ROW_WARPS)


def test_folding_rounds_to_nearest(ptx: dict[str, dict[str, int]]) -> None:
    """Which Triton's interpreter does not."""
    rounding = [name for name in ptx["update"] if re.fullmatch(r"cvt.*\.bf16(x2)?\.f32", name)]
    assert rounding
    assert all(".rn" in name for name in rounding)
