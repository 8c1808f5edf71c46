"""Few file descriptors, little memory, no byte free: exit code 6 and nothing left over, or all was done."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from counting import record, scale
from matplotlib.figure import Figure
from test_kills import unshared
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401  (the fixture is used by all)
from trees import tree

from neuroada_cli import failures, files
from neuroada_cli.commands import convert, merge, select, train
from neuroada_cli.errors import LIMITS, ModelError, ResourceError, limit_reached, unreadable
from neuroada_cli.hub import loading
from neuroada_cli.hub.resolve import read_config
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.show import figures
from neuroada_cli.training.checkpoint import newest_opened

SMALL = {"limit": 8, "validation_limit": 2}
DESCRIPTORS = (60, 1, 0, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24)
HUNG = 300  # seconds after which the system ends a child, whose code then says so


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama_folder(tmp_path / "llama")


def recipe_in(folder: Path, model: Path) -> Recipe:
    return tiny_recipe(model, folder, data=SMALL, train={"epochs": 1, "save_every": 1})


def code_with(descriptors: int, act: Callable[[], object], said: Path) -> int:
    """The exit code of a child that may open so many files more than are open now."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    signal.alarm(HUNG)
    try:
        sys.stderr = said.open("w", encoding="utf-8")
        first_free = os.dup(2)
        os.close(first_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + descriptors, first_free + descriptors))
        act()
        code = 0
    except BaseException as error:
        code = failures.report(error)
    finally:
        sys.stderr.flush()
        os._exit(code)


def test_few_file_descriptors_leave_nothing_and_blame_nobody_else(model: Path, tmp_path: Path) -> None:
    room, said = tmp_path / "room", tmp_path / "said"
    done = recipe_in(room / "done", model)
    train.run(done, quiet=True)
    select.run(done, out=room / "chosen.safetensors", quiet=True)  # imports all that is imported late
    merge.run(room / "done", room / "merged", quiet=True)
    for name in ("chosen.safetensors", "merged"):
        place = room / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    before = tree(room)
    work: dict[str, Callable[[], object]] = {
        "merge": lambda: merge.run(room / "done", room / "merged", quiet=True),
        "select": lambda: select.run(done, out=room / "chosen.safetensors", quiet=True),
        "train": lambda: train.run(recipe_in(room / "new", model), quiet=True),
        "resume": lambda: train.run(done, resume=True, quiet=True),
    }
    found: Counter[str] = Counter()
    for name, act in work.items():
        for descriptors in DESCRIPTORS[: scale(2, len(DESCRIPTORS))]:
            code, text = code_with(descriptors, act, said), said.read_text(encoding="utf-8")
            assert code in (0, 6), (name, descriptors, code, text)
            after = tree(room)
            assert not [file for file in after if ".tmp-" in file or file.endswith(".lock")], after.keys()
            if code:
                assert "open files" in text.strip().splitlines()[-1], (name, descriptors, text)
                assert {file: after[file] for file in before} == before
                found["refused"] += 1
            else:
                found["done"] += 1
            for place in (room / "merged", room / "new"):
                shutil.rmtree(place, ignore_errors=True)
            (room / "chosen.safetensors").unlink(missing_ok=True)
    assert found["refused"] >= len(work)
    assert found["done"] >= len(work)
    record("few file descriptors", dict(found))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_the_machine_lacks_is_no_fault_of_a_file(number: int) -> None:
    found = unreadable(OSError(number, os.strerror(number), "a.json"), "a.json")
    assert isinstance(found, ResourceError)
    assert found.fix
    assert isinstance(unreadable(OSError(errno.EACCES, "no"), "a.json"), ModelError)


def test_a_limit_is_recognised_through_other_exceptions() -> None:
    outer = RuntimeError("cannot load")
    outer.__context__ = OSError(errno.EMFILE, "Too many open files")
    assert "ulimit -n" in str(limit_reached(outer))
    assert failures.explain(outer)[1] == 6
    assert limit_reached(Exception("No such file (os error 24)"))
    assert limit_reached(ValueError("24 files")) is None


def test_a_library_whose_code_finds_no_memory_is_not_said_to_be_missing(tmp_path: Path) -> None:
    """A library that cannot be mapped raises an ImportError, and one that imports it blames its install."""
    inner = ImportError("_x.so: failed to map segment from shared object")
    outer = ImportError("the install seems to be broken, please reinstall")
    outer.__cause__ = inner
    with pytest.raises(ResourceError) as caught, loading._explained(tmp_path):
        raise outer
    assert caught.value.fix == LIMITS[errno.ENOMEM]
    assert failures.explain(outer)[1] == 6


def test_a_good_checkpoint_is_not_passed_over_for_lack_of_descriptors(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(recipe_in(tmp_path / "run", model), quiet=True)
    opened = Path.open

    def refuse(self: Path, *given: object, **named: object) -> object:
        if self.name == "adapter_model.safetensors":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(self))
        return opened(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ResourceError, match=r"Too many open files; raise the limit of open files"):
        newest_opened(tmp_path / "run")


# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("In FT2Font: Could not set the fontsize")])
def test_a_picture_that_cannot_be_drawn_is_no_failure_of_a_run(
    error: Exception,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Figure, "savefig", refuse)
    result = train.run(recipe_in(tmp_path / "run", model))
    assert result.last is not None
    said = " ".join(capsys.readouterr().err.split())
    assert f"training.png could not be drawn ({type(error).__name__}" in said
    assert "the numbers are complete without it" in said
    assert not (tmp_path / "run" / "training.png").exists()
    assert not [name for name in tree(tmp_path / "run") if ".tmp-" in name]
    with pytest.raises(ResourceError, match=r"overlap\.png: cannot be drawn"):  # which was asked for
        select.compare(result_recipe(tmp_path, model), ["magnitude", "random"], plot=tmp_path / "overlap.png")


def result_recipe(folder: Path, model: Path) -> Recipe:
    return recipe_in(folder / "run", model)


def test_what_the_disk_says_of_a_picture_is_raised(tmp_path: Path) -> None:
    def full() -> None:
        raise ResourceError("cannot be written: No space left on device")

    with pytest.raises(ResourceError, match="No space left"):
        figures.drawn(full, tmp_path / "x.png")


FULL = """
import os, sys
from neuroada_cli import files
from neuroada_cli.errors import ResourceError
for lock in (files.Lock("{disk}"), files.Lock.on("{disk}/out"), files.Lock("{disk}/new")):
    try:
        with lock:
            sys.exit("was locked")
    except ResourceError as error:
        assert "No space left on device" in error.line(), error.line()
assert os.listdir("{disk}") == ["filler"], os.listdir("{disk}")
"""


def test_a_disk_with_no_byte_free_keeps_no_lock(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "full.py").write_text(FULL.format(disk=disk), encoding="utf-8")
    script = f"""
        mount -t tmpfs -o size=64k none {disk} || exit 99
        dd if=/dev/zero of={disk}/filler bs=4k 2> /dev/null
        PYTHONPATH={Path(__file__).parents[2]} {sys.executable} {tmp_path}/full.py
    """
    done = unshared("-Urm", script)
    if done.returncode == 99:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_small_merge_asks_for_little_room_and_for_enough(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "tokenizer_large.json").write_text("x" * 3_000_000, encoding="utf-8")
    train.run(recipe_in(tmp_path / "run", model), quiet=True)
    asked: list[int] = []
    monkeypatch.setattr(files, "require_space", lambda _, nbytes: asked.append(nbytes))
    merge.run(tmp_path / "run", tmp_path / "out", quiet=True)
    taken = size_of(tmp_path / "out")
    assert taken > 3_000_000
    assert taken <= asked[-1] <= taken + (300 << 10)


def test_a_conversion_asks_for_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = tiny_llama_folder(tmp_path / "model")
    tensors, _ = files.read_tensors(model / "model.safetensors")
    torch.save(tensors, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    asked: list[int] = []
    monkeypatch.setattr(files, "require_space", lambda _, nbytes: asked.append(nbytes))
    out = convert.run(model, tmp_path / "out", quiet=True).out
    assert size_of(out) <= asked[-1] <= size_of(out) + (300 << 10)
    assert read_config(out)
