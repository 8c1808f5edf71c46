"""A merge holds one tensor at a time: its peak does not grow with the model, nor with its shards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import pico_llama
from test_wrong_bases import adapter_of

from neuroada_cli import hub

CONSTANT = 24 << 20  # the writer's chunks, the libraries' own caches
PEAK = Path("/proc/self/clear_refs")

# A first merge, of a small model, imports and allocates what any merge needs; the second is measured.
MERGE = """
import sys
from pathlib import Path
from neuroada_cli.commands import merge

def held(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(what))

small, large, out, dtype = sys.argv[1:]
for number in range(2):
    merge.run(small, Path(out) / f"small{number}", dtype=dtype, quiet=True)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = held("VmRSS")
merge.run(large, Path(out) / "large", dtype=dtype, quiet=True)
print(held("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Adapters of a tiny base, and of one of 150 MB in shards of which each holds one or two tensors."""
    place = tmp_path_factory.mktemp("memory")
    sizes = {"small": (2, 64), "large": (6, 65_536)}
    for name, (layers, width) in sizes.items():
        model = pico_llama(num_hidden_layers=layers, intermediate_size=width)
        model.save_pretrained(place / name, max_shard_size="12MB")
    assert len(hub.open_weights(place / "large").files) > 12
    small, large = (adapter_of(place / name, place / f"{name}-adapter") for name in sizes)
    return small, large


@pytest.mark.skipif(not os.access(PEAK, os.W_OK), reason="needs Linux, to measure a peak")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_peak_is_that_of_one_tensor(folders: tuple[Path, Path], tmp_path: Path, dtype: str) -> None:
    small, large = folders
    weights = hub.open_weights(large.parent / "large")
    largest = max(weights.info(name).nbytes for name in weights)
    assert weights.nbytes > 3 * (largest + CONSTANT), "or nothing would be shown"
    command = [sys.executable, "-c", MERGE, str(small), str(large), str(tmp_path), dtype]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < largest + CONSTANT
    merged = hub.open_weights(tmp_path / "large")
    assert merged.nbytes >= weights.nbytes // 2
