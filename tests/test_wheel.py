"""What is published: built, checked, and installed where no checkout is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"
WHERE = "import neuroada_cli; print(neuroada_cli.__file__)"
# what is no module, and read while the program runs
BESIDE_MODULES = (
    "py.typed", "delta/kernels/sampled_grad.c", "delta/backend_table.json", "evaluation/published.json",
    "bundled_recipes/quickstart.yaml", "bundled_recipes/recipe.schema.json",
    "bundled_recipes/suites/glue.yaml",
)  # fmt: skip


def said(*words: str | Path, cwd: Path) -> str:
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=cwd, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    said(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.mark.slow
def test_both_archives_are_what_an_index_takes(built: Path) -> None:
    files = sorted(built.iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    assert said(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=built).count("PASSED") == 2


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "neuroada_cli"
    ours = [f.relative_to(ROOT).as_posix() for f in package.rglob("*") if f.is_file() and f.suffix != ".pyc"]
    recipes = [
        f"neuroada_cli/bundled_recipes/{f.relative_to(ROOT / 'recipes').as_posix()}"
        for f in (ROOT / "recipes").rglob("*.*")
    ]
    assert {*ours, *recipes, *(f"neuroada_cli/{name}" for name in BESIDE_MODULES)} <= held
    others = {name for name in held if not name.startswith(("neuroada_cli/", "neuroada_cli-"))}
    assert not others


@pytest.mark.slow
def test_it_runs_where_no_checkout_is(built: Path, tmp_path: Path) -> None:
    """Its dependencies are lent by this environment; of the package itself, only the wheel is there."""
    (wheel,) = built.glob("*.whl")
    said(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    there = tmp_path / "venv" / "bin"
    said(
        there / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=tmp_path,
    )
    here = said(there / "python", "-c", PACKAGES, cwd=tmp_path)
    lent = Path(sys.executable).parents[1] / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (Path(here.strip()) / "lent.pth").write_text(f"{lent / 'site-packages'}\n")

    where = said(there / "python", "-c", WHERE, cwd=tmp_path)
    assert str(tmp_path) in where
    neuroada = there / "neuroada"
    assert "neuroada train" in said(neuroada, "train", "--help", cwd=tmp_path)
    assert "llama7b_commonsense" in said(neuroada, "recipes", "ls", cwd=tmp_path)
    assert said(neuroada, "recipes", "schema", cwd=tmp_path).startswith("{")
    said(neuroada, "recipes", "copy", "quickstart", "own.yaml", cwd=tmp_path)
    short = ("--set", "train.max_steps=2", "--set", "train.eval_every=null", "--set", "data.limit=16")
    said(neuroada, "train", "own.yaml", "--quiet", *short, cwd=tmp_path)
    assert "weights changed" in said(neuroada, "merge", "runs/own", "merged", cwd=tmp_path)
