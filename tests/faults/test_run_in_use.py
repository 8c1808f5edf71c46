"""A run folder that others read, or have put things into, while a training works in it."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from counting import record, scale
from forked import child
from scenarios import _training
from tiny_adapter import write
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401  (the fixture is used by all)

from neuroada_cli import files
from neuroada_cli.adapter import find
from neuroada_cli.adapter.find import checkpoints, find_adapter, open_found
from neuroada_cli.adapter.folder import read_adapter
from neuroada_cli.commands import merge, train
from neuroada_cli.errors import ModelError
from neuroada_cli.loop.loop import Progress
from neuroada_cli.training.checkpoint import newest_complete, newest_opened

ODD = ("checkpoint-٣", "checkpoint-007", "checkpoint--1", "checkpoint-3.0", "checkpoint-1" + "0" * 5000)
EMPTY = ("checkpoint-999999999", "checkpoint-5")


def save(folder: Path, step: int, keep: int = 1, best: int | None = None) -> None:
    kept, parts = _training()
    progress = Progress(step=step, best=None if best is None else 1.0, best_step=best)
    dataclasses.replace(kept, run_dir=folder, keep=keep).save(progress, *parts)  # type: ignore[arg-type]


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.glob("checkpoint-*") if not entry.is_symlink()}


# ---------------------------------------------------------------------------------------------------
# What looks like a checkpoint


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A run with one checkpoint, among folders that were put there by somebody."""
    save(tmp_path, 2)
    for name in EMPTY:
        (tmp_path / name).mkdir()
    for name in ODD:
        if len(name) < 200:
            shutil.copytree(tmp_path / "checkpoint-2", tmp_path / name)
    return tmp_path


def test_only_what_a_save_writes_is_loaded(strange: Path) -> None:
    assert dict(checkpoints(strange)) == {2: strange / "checkpoint-2"}
    assert newest_complete(strange) == strange / "checkpoint-2"
    for link in ("last", "best"):
        (strange / link).unlink(missing_ok=True)
    assert find_adapter(strange) == strange / "checkpoint-2"


def test_only_what_a_save_writes_counts_when_old_ones_go(strange: Path) -> None:
    before = names(strange)
    half = strange / "checkpoint-12345"
    half.mkdir()
    (half / "adapter_config.json").write_text("{}", encoding="utf-8")
    later = write(strange / "checkpoint-9000")  # complete, but of a step that is yet to come
    save(strange, 3)
    assert names(strange) == (before - {"checkpoint-2"}) | {"checkpoint-3", half.name, later.name}
    save(strange, 4)
    save(strange, 5)  # takes the place of the empty folder
    assert names(strange) == (before - {"checkpoint-2"}) | {"checkpoint-5", half.name, later.name}
    files.verify_folder(strange / "checkpoint-5")


def test_a_number_of_thousands_of_digits_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems take 255 characters; what a network file system takes is not known."""
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [self / name for name in ODD])
    assert not list(checkpoints(tmp_path))


def test_what_has_no_manifest_is_passed_over_by_name_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_llama_folder(tmp_path / "llama")
    small, often = {"limit": 12, "validation_limit": 2}, {"epochs": 1, "save_every": 1, "keep": 9}
    whole, mine = (tiny_recipe(model, tmp_path / name, data=small, train=often) for name in ("whole", "mine"))
    train.run(whole, quiet=True)
    train.run(mine, quiet=True)
    for name in ("checkpoint-3", "checkpoint-2"):
        (tmp_path / "mine" / name / files.MANIFEST).unlink()
    capsys.readouterr()
    train.run(mine, resume=True)
    said = " ".join(capsys.readouterr().err.split())
    for name in ("checkpoint-3", "checkpoint-2"):
        assert f"{name} is passed over" in said
    assert "has no manifest.json, so it was not written completely" in said
    for step in (2, 3):
        one, other = (
            files.verify_folder(tmp_path / run / f"checkpoint-{step}")["files"] for run in ("whole", "mine")
        )
        changed = {name for name in one if one[name] != other[name]}
        assert changed <= {"state/state.json", "recipe.yaml"}  # they name the folder and the seconds


# ---------------------------------------------------------------------------------------------------
# Reading while it is written to


def test_what_is_read_stays_until_it_is_not(tmp_path: Path) -> None:
    save(tmp_path, 2)
    opened = open_found(tmp_path)
    assert opened.folder.name == "checkpoint-2"
    save(tmp_path, 3)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-3"}
    read_adapter(opened)
    del opened
    gc.collect()
    save(tmp_path, 4)
    assert names(tmp_path) == {"checkpoint-4"}


def test_going_on_from_a_checkpoint_does_not_keep_it(tmp_path: Path) -> None:
    save(tmp_path, 2)
    source = newest_opened(tmp_path)
    assert source is not None
    save(tmp_path, 3)
    assert names(tmp_path) == {"checkpoint-3"}


@pytest.mark.parametrize("link", ["best", "last"])
def test_a_checkpoint_that_goes_while_it_is_opened_is_looked_for_again(
    link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2, best=2)
    if link == "last":
        (tmp_path / "best").unlink()
    verify, goes = files.verify_folder, iter([True])

    def removed_meanwhile(folder: Path, *given: Any, **named: Any) -> Any:
        if next(goes, False):
            save(tmp_path, 3, best=3)
            shutil.rmtree(folder)  # as on a file system without locks
        return verify(folder, *given, **named)

    monkeypatch.setattr(files, "verify_folder", removed_meanwhile)
    assert open_found(tmp_path).folder.name == "checkpoint-3"


def test_a_checkpoint_that_goes_once_it_is_listed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)
    going, is_symlink = write(tmp_path / "checkpoint-1"), Path.is_symlink

    def remove_then_look(path: Path) -> bool:
        if path == going:
            shutil.rmtree(going, ignore_errors=True)
        return is_symlink(path)

    monkeypatch.setattr(Path, "is_symlink", remove_then_look)
    assert dict(checkpoints(tmp_path)) == {2: tmp_path / "checkpoint-2"}
    assert not going.exists()


def test_a_damaged_one_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 2)
    (tmp_path / "checkpoint-2" / "recipe.yaml").write_text("x", encoding="utf-8")
    looks = Counter[str]()
    original = find.find_adapter
    monkeypatch.setattr(find, "find_adapter", lambda path: looks.update(["look"]) or original(path))
    with pytest.raises(ModelError, match=r"recipe\.yaml has 1 bytes, its manifest says"):
        open_found(tmp_path)
    assert looks["look"] == 1


def test_removing_is_refused_only_while_somebody_reads(tmp_path: Path) -> None:
    write(tmp_path / "one")
    reading = files.Reading(tmp_path / "one")
    assert not files.remove_folder(tmp_path / "one", unless_read=True)
    files.verify_folder(tmp_path / "one")
    assert files.remove_folder(tmp_path / "one")  # whoever starts anew does not ask
    assert not reading.is_of(tmp_path / "one")
    assert not list(tmp_path.iterdir())


def forever_saving(folder: Path) -> None:
    step = 2
    while True:
        step += 1
        save(folder, step, best=step if step % 2 else step - 1)


def test_reading_a_run_while_it_saves_and_prunes(tmp_path: Path) -> None:
    """A child saves and removes without a pause; every reader gets one whole checkpoint."""
    save(tmp_path, 2, best=2)
    pid = child(lambda: forever_saving(tmp_path))
    found: Counter[str] = Counter()
    seen = set()
    try:
        while found.total() < scale(60, 3_000) or len(seen) < 6:
            opened = open_found(tmp_path)
            read_adapter(opened)
            for name in opened.manifest["files"]:
                assert (opened.folder / name).is_file()
            seen.add(opened.folder.name)
            found["read whole"] += 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    record("random moments of reading a run that saves and prunes", found)


def test_merging_a_run_while_it_trains(tmp_path: Path) -> None:
    """Real trainings, real merges: `best` and old checkpoints come and go under the reader."""
    model = tiny_llama_folder(tmp_path / "llama")
    often = {"eval_every": 1, "save_every": 1, "keep": 1, "epochs": 100, "max_steps": 300}
    recipe = tiny_recipe(model, tmp_path / "run", data={"validation_limit": 2}, train=often)
    pid = child(lambda: train.run(recipe, quiet=True) and None)
    found: Counter[str] = Counter()
    try:
        while not (tmp_path / "run" / "best").exists():
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        for number in range(scale(6, 60)):
            result = merge.run(tmp_path / "run", tmp_path / f"out{number}", quiet=True)
            files.verify_folder(result.out)
            shutil.rmtree(result.out)
            found["merged"] += 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    record("random moments of merging a run that trains", found)
