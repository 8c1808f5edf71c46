"""A folder that is opened for a command is compared with its manifest once, Adam's moments included."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands import merge, train
from neuroada_cli.files import manifest


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    model = tiny_llama_folder(tmp_path / "llama")
    small = {"limit": 8, "validation_limit": 4}
    recipe = tiny_recipe(model, tmp_path / "run", data=small, train={"max_steps": 2, "save_every": 1})
    return train.run(recipe, quiet=True).run_dir


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file of a checkpoint was read whole to be hashed."""
    seen: Counter[str] = Counter()
    real = manifest._read_hash

    def counting(path: Path) -> str:
        if "checkpoint-" in str(path):
            seen[path.name] += 1
        return real(path)

    monkeypatch.setattr(manifest, "_read_hash", counting)
    return seen


def test_by_eval(run_dir: Path, hashed: Counter[str]) -> None:
    evaluate.run(str(run_dir), limit=1, max_new_tokens=1, quiet=True)
    assert hashed["optimizer.safetensors"] == 1
    assert set(hashed.values()) == {1}


def test_by_merge(run_dir: Path, hashed: Counter[str], tmp_path: Path) -> None:
    merge.run(run_dir, tmp_path / "merged", quiet=True)
    assert set(hashed.values()) == {1}


def test_by_resume(run_dir: Path, hashed: Counter[str]) -> None:
    train.run(
        tiny_recipe(
            run_dir.parent / "llama", run_dir, data={"limit": 8, "validation_limit": 4},
            train={"max_steps": 2, "save_every": 1},
        ),
        resume=True, quiet=True,
    )  # fmt: skip
    assert set(hashed.values()) == {1}
