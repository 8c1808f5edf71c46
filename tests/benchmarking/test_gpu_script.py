"""`benchmarks/gpu.py` runs where only torch, transformers and peft are, and brings home what it has."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OURS = ("common", "op", "gpu", "gpu_kernels", "gpu_loads")

HIDDEN = """
import importlib.machinery, sys
hidden = {"typer", "rich", "pydantic", "pydantic_core", "bitsandbytes", "datasets"}
class Poorer(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Poorer
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu as module  # type: ignore[import-not-found]

    yield module
    for name in OURS:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_it_imports_and_measures_without_pydantic_rich_and_typer(tmp_path: Path) -> None:
    script = f"""{HIDDEN}
from pathlib import Path
sys.path.insert(0, {str(BENCHMARKS)!r})
import gpu
run = gpu.Run(Path({str(tmp_path)!r}), 600)
models = gpu.Models("fp32", "cpu")
load = gpu.Load(compare=(), k=(1,), rows="packed")
run.phase("step_gpu_x", 200, lambda target: gpu.steps(models, load, target, lambda text: None, smoke=True))
assert not run.failed, run.failed
assert not hidden & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "step_gpu_x.json").read_text(encoding="utf-8"))
    assert [(row["method"], row["k"]) for row in rows] == [("floor", None), ("neuroada", 1)]
    assert rows[0]["settings"]["rows"].endswith("packed")
    assert all(row["predicted_bytes"] is None for row in rows)


def test_each_phase_is_caught_by_itself_and_all_results_lie_in_one_file(gpu: Any, tmp_path: Path) -> None:
    run = gpu.Run(tmp_path, 600)

    def fails(target: Path) -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nmore of it")

    def hangs(target: Path) -> None:
        time.sleep(600)

    run.phase("step_gpu_a", 1, fails)
    run.phase("step_gpu_b", 601, fails)  # more than is left
    run.phase("step_gpu_c", 0.01, hangs)
    run.phase("step_gpu_d", 1, lambda target: gpu.files.write_json(target, [{"fine": True}]))
    assert run.left_out == ["step_gpu_b"]
    assert run.failed["step_gpu_a"] == "RuntimeError: CUDA error: an illegal memory access"
    assert run.failed["step_gpu_c"].startswith("OutOfTimeError")
    with tarfile.open(tmp_path / gpu.PACK) as packed:
        inside = {name: json.load(packed.extractfile(name)) for name in packed.getnames()}  # type: ignore[arg-type]
    assert set(inside) == {"gpu_run.json", "step_gpu_a.json", "step_gpu_c.json", "step_gpu_d.json"}
    assert inside["step_gpu_d.json"] == [{"fine": True}]
    assert inside["step_gpu_a.json"][0]["failed"].startswith("RuntimeError")
    assert inside["gpu_run.json"]["left_out"] == ["step_gpu_b"]


def test_all_phases_together_may_take_no_more_than_the_run(gpu: Any) -> None:
    assert sum(seconds for _, seconds in gpu.STEPS.values()) + sum(gpu.OTHERS.values()) <= gpu.SECONDS < 540


def test_what_was_measured_elsewhere_is_laid_where_the_pages_look(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.setattr(gpu, "RESULTS", here)
    monkeypatch.setattr(gpu.op, "TABLE", tmp_path / "table.json")
    row = {"tokens": 8192, "inputs": 4096, "outputs": 4096, "k": 1, "fastest": "native"}
    known = {"kind": "cpu float32", **row}
    gpu.files.write_json(gpu.op.TABLE, {"made_by": "make bench-op", "machine": "a CPU", "rows": [known]})

    def brought(name: str | None) -> Path:
        run = gpu.Run(tmp_path / f"from {name}", 600)
        run.results.mkdir()
        monkeypatch.setattr(gpu, "machine", lambda: {"gpu": name})
        measured = {"kind": "cuda bfloat16", **row, "fastest": "triton_rows"}
        gpu.files.write_json(run.results / "op_cuda.json", {"machine": {"gpu": name}, "rows": [measured]})
        run.note()
        return run.results / gpu.PACK

    with pytest.raises(SystemExit, match="measured on no GPU"):
        gpu.adopt(brought(None))
    assert not list(here.iterdir())
    gpu.adopt(brought("H100"))
    assert {file.name for file in here.iterdir()} == {"gpu_run.json", "op_cuda.json"}
    chosen = json.loads(gpu.op.TABLE.read_text(encoding="utf-8"))["rows"]
    assert [(each["kind"], each["fastest"]) for each in chosen] == [
        ("cpu float32", "native"),
        ("cuda bfloat16", "triton_rows"),
    ]
