"""What `train` says and leaves behind when memory runs out, numbers break, or frozen weights move."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import child, code_of
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401
from trees import tree

from neuroada_cli import files, hub
from neuroada_cli.commands import train
from neuroada_cli.errors import ModelError, NumericsError, ResourceError, UserError
from neuroada_cli.loop import loop
from neuroada_cli.methods.neuroada import NeuroAda
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.training import advice, picture, preflight, space
from neuroada_cli.training.log import read_metrics

SMALL = {"limit": 8, "validation_limit": 2}


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("models") / "llama")


def failed(recipe: Recipe, error: type[UserError], **options: Any) -> str:
    with pytest.raises(error) as caught:
        train.run(recipe, quiet=True, **options)
    return caught.value.line()


def saved(run_dir: Path) -> set[str]:
    return {entry.name for entry in run_dir.glob("checkpoint-*")}


def test_an_index_that_transformers_cannot_use_is_told_before_rows_are_read(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(llama_folder, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").rename(tmp_path / "bare" / "model-00001-of-00001.safetensors")
    names = hub.open_weights(llama_folder).names
    files.write_json(
        tmp_path / "bare" / hub.INDEX,
        {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")},
    )
    monkeypatch.setattr(preflight, "prepare", None)
    line = failed(tiny_recipe(tmp_path / "bare", tmp_path / "run", data=SMALL), ModelError)
    assert "index.json: has no metadata" in line
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------
# Memory


def without_memory_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.train_step

    def train_step(*args: Any, **keywords: Any) -> Any:
        if args[5] == step - 1:
            torch.empty(1 << 60, dtype=torch.uint8)  # really more than there is
        return original(*args, **keywords)

    monkeypatch.setattr(loop, "train_step", train_step)


def test_out_of_memory_tells_the_estimate_and_all_that_may_be_lowered(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted = train.run(tiny_recipe(llama_folder, tmp_path / "dry", data=SMALL), dry_run=True, quiet=True)
    without_memory_at(1, monkeypatch)
    line = failed(tiny_recipe(llama_folder, tmp_path / "run", data=SMALL), ResourceError)
    assert re.fullmatch(
        r"out of memory in training: steps of 2 x \d+ tokens take about [\d.]+ GB; "
        r"lower train.micro_batch_size \(now 2\) or data.max_length, "
        r"or set train.gradient_checkpointing: true, or set model.quantization: nf4",
        line,
    ), line
    (told,) = re.findall(r"about ([\d.]+) GB", line)
    assert float(told) == round(predicted.peak_bytes / 1e9, 2)
    assert "intact" not in line  # there is no checkpoint


def test_out_of_memory_says_only_what_can_be_done(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_memory_at(2, monkeypatch)
    monkeypatch.setattr(advice, "predicted_memory", lambda *_: 1 / 0)  # an estimate that fails is no bug
    settings = {"method": "mask", "gradient_checkpointing": True, "micro_batch_size": 1, "save_every": 1}
    line = failed(tiny_recipe(llama_folder, tmp_path / "run", data=SMALL, train=settings), ResourceError)
    assert line == "out of memory in training; checkpoint-1 is intact; lower data.max_length"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("unable to mmap 270 bytes from file: Cannot allocate memory (12)"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_out_of_memory_in_loading_has_advice_of_its_own(
    error: Exception, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_model(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "load_model", load_model)
    line = failed(tiny_recipe(llama_folder, tmp_path / "run", data=SMALL), ResourceError)
    assert line == (
        "out of memory in loading the model: as fp32 the weights take 0.00 GB; "
        "set model.dtype: bf16, or set model.quantization: nf4, or choose a smaller model"
    )
    settings = {"dtype": "bf16", "quantization": "nf4"}
    line = failed(tiny_recipe(llama_folder, tmp_path / "run", data=SMALL, model=settings), ResourceError)
    assert line == "out of memory in loading the model; choose a smaller model"
    assert not (tmp_path / "run").exists()


CAPPED = """
import resource, sys
from neuroada_cli.cli import app as cli
try:
    few = ["--set", "train.batch_size=2", "--set", "train.micro_batch_size=2"]
    cli.main(["train", sys.argv[1], "--set", "run_dir=" + sys.argv[2], *few])  # everything is imported now
except SystemExit as stop:
    assert not stop.code
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + (150 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
cli.main(["train", sys.argv[1]])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS as Linux has it")
def test_a_process_that_really_has_no_memory_left_ends_with_6(tmp_path: Path) -> None:
    """The command line under a limit on its memory, with a step that takes gigabytes."""
    model = tiny_llama_folder(tmp_path / "llama", intermediate_size=8192)
    big = {"batch_size": 64, "micro_batch_size": 64, "max_steps": 1}
    data = {"limit": 64, "validation_limit": 2}
    recipe = tmp_path / "big.yaml"
    recipe.write_text(to_yaml(tiny_recipe(model, tmp_path / "run", data=data, train=big)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", CAPPED, str(recipe), str(tmp_path / "small")],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 6, done.stderr[-2000:]
    assert len(lines) == 1, done.stderr[-2000:]
    assert "out of memory in training" in lines[0]
    assert "lower train.micro_batch_size (now 64) or data.max_length" in lines[0]
    assert "Traceback" not in done.stderr
    assert saved(tmp_path / "run") == set()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS as Linux has it")
def test_a_picture_that_really_finds_no_memory_is_told_and_the_run_is_complete(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a child, which may have no byte more than it has when it begins to draw."""
    recipe = tiny_recipe(llama_folder, tmp_path / "run", data=SMALL, train={"max_steps": 2})
    original = picture.draw

    def draw(*given: Any) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used, before[1]))
        taken: list[bytearray] = []  # what earlier tests have left free within it
        for size in (1 << 22, 1 << 18):
            with contextlib.suppress(MemoryError):
                while True:
                    taken.append(bytearray(size))
        try:
            original(*given)
        finally:
            taken.clear()

    monkeypatch.setattr(picture, "draw", draw)

    def run() -> int:
        return 0 if train.run(recipe, quiet=True).steps == 2 else 1

    assert code_of(child(run)) == 0
    said = capfd.readouterr().err
    assert f"{tmp_path / 'run' / 'training.png'} could not be drawn (" in said
    assert "the numbers are complete without it" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "training.png").exists()
    assert saved(tmp_path / "run") == {"checkpoint-2"}
    files.verify_folder(tmp_path / "run" / "last")


# ---------------------------------------------------------------------------------------------------
# Room on the disk


@pytest.mark.parametrize(
    ("method", "more"), [("neuroada", {}), ("neuroada", {"delta_dtype": "bf16"}), ("mask", {}), ("full", {})]
)
def test_the_room_asked_for_is_what_a_checkpoint_takes(
    method: str, more: dict[str, Any], llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    original = space.checkpoint_bytes
    monkeypatch.setattr(space, "SMALL_BYTES", 0)
    monkeypatch.setattr(
        space, "checkpoint_bytes", lambda checked: asked.append(original(checked)) or asked[0]
    )
    settings = {"max_steps": 1, "method": method, **more}
    recipe = tiny_recipe(llama_folder, tmp_path / "run", data=SMALL, train=settings, select={"k": 16})
    result = train.run(recipe, quiet=True)
    assert result.last is not None
    taken = sum(file.stat().st_size for file in result.last.rglob("*") if file.is_file())
    assert asked[0] < taken < asked[0] + (64 << 10)  # which is what is added for the small files


def test_without_room_for_the_checkpoints_nothing_begins(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for as many as are kept, the best one and the one being written; but for no more than steps."""
    recipe = tiny_recipe(llama_folder, tmp_path / "run", data=SMALL, train={"save_every": 1, "keep": 1})
    monkeypatch.setattr(space, "checkpoint_bytes", lambda checked: 1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2_999_999))
    with monkeypatch.context() as patch:
        patch.setattr(hub, "load_model", None)
        line = failed(recipe, ResourceError)
        assert line == f"{tmp_path}/run: needs 3,000,000 bytes, 2,999,999 are free; make room"
        assert not (tmp_path / "run").exists()
    train.run(tiny_recipe(llama_folder, tmp_path / "run", data=SMALL, train={"max_steps": 2}), quiet=True)
    # what a former run takes makes way for the new one
    monkeypatch.setattr(space, "checkpoint_bytes", lambda checked: 1_000_010)
    train.run(recipe, quiet=True, overwrite=True)


# ---------------------------------------------------------------------------------------------------
# Numbers


def damage(weight: str, entry: Any, at_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that writes where it must not, just before optimizer step `at_step`."""
    steps = iter(range(1, 100))
    original = NeuroAda.before_step

    def before_step(self: NeuroAda, model: Any, decay: float = 0.0) -> None:
        original(self, model, decay)
        if next(steps) == at_step:
            model.get_parameter(weight).data[entry] += 1e-3

    monkeypatch.setattr(NeuroAda, "before_step", before_step)


def test_a_frozen_weight_that_moves_is_noticed_after_the_first_step(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage("model.norm.weight", ..., 1, monkeypatch)
    line = failed(tiny_recipe(llama_folder, tmp_path / "run"), NumericsError)
    assert line.startswith("model.norm.weight: frozen weights changed during training; no checkpoint of this")
    assert "intact" not in line
    assert NumericsError.exit_code == 5
    assert [entry["step"] for entry in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1]
    assert saved(tmp_path / "run") == set()


def test_a_frozen_weight_that_moves_later_is_in_no_checkpoint(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage("model.norm.weight", ..., 6, monkeypatch)
    settings = {"save_every": 4, "eval_every": 50}
    line = failed(tiny_recipe(llama_folder, tmp_path / "run", train=settings), NumericsError)
    assert line.startswith("model.norm.weight: frozen weights changed")
    assert "checkpoint-4 is intact" in line
    assert [entry["step"] for entry in read_metrics(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 9))
    assert saved(tmp_path / "run") == {"checkpoint-4"}
    files.verify_folder(tmp_path / "run" / "last")


def test_one_frozen_entry_that_no_sample_looks_at_is_noticed_at_the_end(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage("model.embed_tokens.weight", (101, 7), 2, monkeypatch)
    settings = {"save_every": 8, "eval_every": 50}
    line = failed(tiny_recipe(llama_folder, tmp_path / "run", train=settings), NumericsError)
    assert line.startswith("model.embed_tokens.weight: frozen weights changed")
    assert saved(tmp_path / "run") == {"checkpoint-8"}  # the samples of step 8 saw nothing


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_base_that_is_copied_over_while_weights_lie_on_it_is_named(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Frozen weights are its pages (findings/loaded-weights-follow-the-file.sh), unless they were cast."""
    base = tmp_path / "base"
    shutil.copytree(llama_folder, base)
    file = base / "model.safetensors"
    original = loop.train_step

    def train_step(*args: Any, **keywords: Any) -> Any:
        if args[5] == 5:
            tensors, metadata = files.read_tensors(file)
            files.write_tensors(tmp_path / "other", {n: -tensor for n, tensor in tensors.items()}, metadata)
            with file.open("r+b") as opened:  # as cp writes, but for cutting it off first
                opened.write((tmp_path / "other").read_bytes())
        return original(*args, **keywords)

    monkeypatch.setattr(loop, "train_step", train_step)
    settings = {"save_every": 4, "eval_every": 50}
    recipe = tiny_recipe(base, tmp_path / "run", train=settings, model={"dtype": dtype})
    if dtype == "bf16":
        assert train.run(recipe, quiet=True).steps == 12
        return
    line = failed(recipe, ModelError)
    assert line.startswith(f"{file}: was written to while the model in memory lay on it")
    assert "its weights differ in content; put the right file back" in line
    assert "bug" not in line
    assert saved(tmp_path / "run") == {"checkpoint-4"}
    files.verify_folder(tmp_path / "run" / "last")


def test_a_base_that_is_touched_or_replaced_by_renaming_does_no_harm(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(llama_folder, base)
    file = base / "model.safetensors"
    loaded = hub.load_model(base, "causal-lm", "fp32").model
    in_use = hub.InUse(hub.open_weights(base), hub.fingerprint(base))
    os.utime(file)
    in_use.refuse_written_to(loaded)
    files.write_tensors(tmp_path / "other", {"lm_head.weight": torch.ones(2)})
    os.replace(tmp_path / "other", file)
    in_use.refuse_written_to(loaded)
    file.unlink()
    in_use.refuse_written_to(loaded)


def test_the_same_run_without_damage_ends_well(llama_folder: Path, tmp_path: Path) -> None:
    """Every method: what each of them changes is what it may change."""
    for method in ("neuroada", "mask", "full", "lora"):
        recipe = tiny_recipe(
            llama_folder,
            tmp_path / method,
            data=SMALL,
            train={"method": method, "epochs": 1},
            model={"dtype": "bf16"},
        )
        assert train.run(recipe, quiet=True).steps == 2


@pytest.mark.parametrize("settings", [{}, {"train": {"method": "full"}}, {"train": {"method": "lora"}}])
def test_a_number_that_is_none_is_told_before_training_where_no_row_meets_it(
    llama_folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Choosing connections does not read this embedding, which is the larger part of the base."""
    base = tmp_path / "base"
    shutil.copytree(llama_folder, base)
    tensors, metadata = files.read_tensors(base / "model.safetensors")
    tensors["model.embed_tokens.weight"][250, 3] = float("nan")
    files.write_tensors(base / "model.safetensors", tensors, metadata)
    line = failed(tiny_recipe(base, tmp_path / "run", data=SMALL, **settings), ModelError)
    assert "model.embed_tokens.weight, row 250 holds NaN or infinity; download it again" in line
    assert str(base) in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_loss_that_breaks_names_its_rows_and_the_checkpoint_that_stays(
    llama_folder: Path, tmp_path: Path
) -> None:
    settings = {"lr": 1e30, "clip": None, "warmup_ratio": 0}
    recipe = tmp_path / "tiny.yaml"
    train_settings = {"save_every": 1, "keep": 9}
    values = tiny_recipe(llama_folder, tmp_path / "run", data=SMALL, optim=settings, train=train_settings)
    recipe.write_text(to_yaml(values), encoding="utf-8")
    before = tree(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "neuroada_cli", "train", str(recipe)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    found = re.fullmatch(
        r"error: the (?:loss|gradient) is not finite at step (\d+), rows [\d, ]+; "
        r"checkpoint-(\d+) is intact; lower optim.lr, look at these rows, or set model.dtype: fp32",
        line,
    )
    assert found, line
    assert int(found[1]) == int(found[2]) + 1
    files.verify_folder(tmp_path / "run" / "last")
    assert os.readlink(tmp_path / "run" / "last") == f"checkpoint-{found[2]}"
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith("run")} == before
