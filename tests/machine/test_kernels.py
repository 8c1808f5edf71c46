"""No library gets compiled code from the hub that nobody has named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import tiny_llama_folder, tiny_recipe

from neuroada_cli.machine import kernels
from neuroada_cli.recipe.load import to_yaml

# Stands where the real package would: it notes whoever imports it or asks it for code.
ASKED = """
import os, pathlib
log = pathlib.Path(os.environ["ASKED"])
log.write_text("imported")

def __getattr__(name):
    def ask(*words, **more):
        log.write_text(f"{name} {words}")
        raise RuntimeError("no code here")
    return ask
"""
# The two ways in which libraries look for it.
LOOKS = """
import importlib.util, sys
from neuroada_cli.machine import kernels

kernels.keep_out()
if "let in" in sys.argv:
    kernels.let_in()
print(importlib.util.find_spec("kernels") is not None)
try:
    from kernels import get_kernel
    get_kernel("kernels-community/quantization-bitsandbytes", version=1)
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site" / "kernels").mkdir(parents=True)
    (tmp_path / "site" / "kernels" / "__init__.py").write_text(ASKED, encoding="utf-8")
    about = tmp_path / "site" / "kernels-0.12.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kernels\nVersion: 0.12.0\n", encoding="utf-8"
    )
    return tmp_path


def environment(site: Path) -> dict[str, str]:
    path = os.pathsep.join([str(site / "site"), str(Path(__file__).parents[2])])
    return os.environ | {"PYTHONPATH": path, "ASKED": str(site / "asked"), "OMP_NUM_THREADS": "1"}


def test_no_library_finds_the_package_unless_the_user_trusts_remote_code(site: Path) -> None:
    def looked(*words: str) -> list[str]:
        line = [sys.executable, "-c", LOOKS, *words]
        return subprocess.run(line, env=environment(site), capture_output=True, text=True).stdout.split()

    assert looked() == ["False", "ModuleNotFoundError"]
    assert not (site / "asked").exists()
    assert looked("let in") == ["True", "RuntimeError"]
    assert (site / "asked").exists()


@pytest.mark.slow
def test_training_dora_asks_for_none(site: Path) -> None:
    """PEFT imports bitsandbytes for it, which asks at its import on a processor with AVX-512 bfloat16."""
    small = {"limit": 4, "validation_limit": 2}
    recipe = tiny_recipe(
        tiny_llama_folder(site / "llama"), site / "run", data=small, train={"epochs": 1, "method": "dora"}
    )
    file = site / "tiny.yaml"
    file.write_text(to_yaml(recipe), encoding="utf-8")
    line = [sys.executable, "-m", "neuroada_cli", "train", str(file)]
    done = subprocess.run(line, env=environment(site), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (site / "asked").exists()


def test_a_recipe_or_a_flag_lets_it_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuroada_cli.cli.options import load

    monkeypatch.setitem(sys.modules, "kernels", None)  # type: ignore[arg-type]
    file = tmp_path / "tiny.yaml"
    values = {"name": "x", "model": {"path": "some/model"}, "data": {"task": "rte"}}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    load(str(file), [])
    assert sys.modules["kernels"] is None
    load(str(file), ["model.trust_remote_code=true"])
    assert "kernels" not in sys.modules
    kernels.keep_out()
    assert sys.modules["kernels"] is None


def test_what_a_host_program_has_imported_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kernels", os)
    kernels.keep_out()
    kernels.let_in()
    assert sys.modules["kernels"] is os


def test_every_process_that_loads_models_keeps_it_out() -> None:
    """What runs by `python -m` of its own begins as a command does, unless it imports nothing of ours."""
    package = Path(kernels.__file__).parents[1]
    starts = [file for file in package.rglob("*.py") if '__name__ == "__main__"' in file.read_text("utf-8")]
    apart = {"__main__.py", "unpickle.py"}  # hands over to cli/app.py; imports neither torch nor us
    without = [file.name for file in starts if "kernels.keep_out()" not in file.read_text("utf-8")]
    assert set(without) == apart
    assert "kernels.keep_out()" in (package / "cli" / "app.py").read_text("utf-8")
    assert len(starts) > len(apart) + 3
