"""Damaged adapters, checkpoints, recipes and rows: refused in one line, or read as anyone else reads them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counting import record, scale
from mutate import mutate
from tiny_adapter import CONFIG, TENSORS, reseal, tiny_adapter, tiny_selection, write

from neuroada_cli import files
from neuroada_cli.adapter.folder import Adapter, AdapterFolder, read_adapter
from neuroada_cli.data.reading import read_file
from neuroada_cli.errors import DataError, ModelError, OutputError, RecipeError, UserError
from neuroada_cli.loop import optimizer_state
from neuroada_cli.recipe.load import bundled_recipes, load_recipe
from neuroada_cli.selection.file import read_selection, write_selection
from neuroada_cli.training.checkpoint import check_unchanged, newest_complete

from scenarios import _save, _training  # isort: skip  (beside this file)

PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory: a hundred thousand cases should not wear out a disk."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.fixture
def folder(memory: Path) -> Path:
    return write(memory / "adapter", overwrite=True)


def independent(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors by the letter of the format, with NumPy alone."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    kinds = {"F32": "<f4", "I32": "<i4", "F16": "<f2", "F64": "<f8", "BF16": "<u2", "I64": "<i8", "U8": "u1"}
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], kinds[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def is_what_numpy_reads(adapter: Adapter, folder: Path) -> None:
    expected = independent(folder / TENSORS)
    read = {f"{PREFIX}{name}": tensor for name, tensor in adapter.whole.items()}
    for module, index_OK in adapter.selection.indices.items():
        read[f"{PREFIX}{module}.neuroada_indices"] = index_OK
        read[f"{PREFIX}{module}.neuroada_values"] = adapter.deltas[module]
        columns_OK = expected[f"{PREFIX}{module}.neuroada_indices"]
        assert columns_OK.min() >= 0
        assert (np.diff(columns_OK, axis=1) > 0).all()
        assert columns_OK.shape[1] == adapter.selection.k
    assert read.keys() == expected.keys()
    for name, tensor in read.items():
        values = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        assert np.array_equal(values.numpy(), expected[name])
        assert torch.isfinite(tensor).all()


def is_one_line(error: UserError, about: str) -> None:
    line = error.line()
    assert line.isprintable(), about
    assert len(line) < 1000, f"{about}: {len(line)} characters"


def attempt(folder: Path, outcomes: Counter[str], about: str) -> None:
    """Refused by a ModelError of one printable line of sane length, or accepted and right."""
    try:
        adapter = read_adapter(folder)
    except ModelError as error:
        is_one_line(error, about)
        outcomes["refused"] += 1
    except Exception as error:
        raise AssertionError(f"{about}: {type(error).__name__}: {error}") from error
    else:
        is_what_numpy_reads(adapter, folder)
        outcomes["accepted, and equal to NumPy's reading"] += 1


def test_every_flipped_bit_is_refused(folder: Path) -> None:
    """Of every file that is verified, and of the manifest itself."""
    flips = sum(_flip_all(write(folder, seed, overwrite=True)) for seed in range(scale(1, 8)))
    assert flips > 15_000
    record("every single-bit flip of an adapter", {"refused": flips})


def _flip_all(folder: Path) -> int:
    flips = 0
    for name in [*files.verify_folder(folder)["files"], files.MANIFEST]:
        file = folder / name
        data = bytearray(file.read_bytes())
        descriptor = os.open(file, os.O_WRONLY)
        for at in range(len(data)):
            for bit in range(8):
                os.pwrite(descriptor, bytes([data[at] ^ (1 << bit)]), at)
                with pytest.raises(ModelError):
                    read_adapter(folder)
                flips += 1
            os.pwrite(descriptor, data[at : at + 1], at)
        os.close(descriptor)
    read_adapter(folder)
    return flips


@pytest.mark.parametrize("part", ["tensors", "header", "config", "manifest"])
def test_mutated_adapters_are_refused_or_read_right(folder: Path, part: str) -> None:
    """With a manifest that agrees, so that the hashes do not hide what the readers do."""
    name = {"config": CONFIG, "manifest": files.MANIFEST}.get(part, TENSORS)
    file = folder / name
    good = file.read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    manifest = json.loads((folder / files.MANIFEST).read_text())
    outcomes: Counter[str] = Counter()
    for seed in range(scale(6_000, 225_000)):
        chance = random.Random(f"{part} {seed}")
        damaged = mutate(good, chance, 0, 8 + length if part == "header" else None)
        if part == "header":
            damaged = _with_its_length(damaged, len(good) - 8 - length, chance)
        file.write_bytes(damaged)
        if part != "manifest":
            digest = hashlib.sha256(damaged).hexdigest()
            manifest["files"][name] = {"bytes": len(damaged), "sha256": digest}
            (folder / files.MANIFEST).write_text(json.dumps(manifest))
        attempt(folder, outcomes, f"{part} {seed}")
    assert outcomes["refused"] > 0
    if part == "tensors":
        assert outcomes["accepted, and equal to NumPy's reading"] > 0
    record(f"mutated adapters: {part}", dict(outcomes))


def _with_its_length(damaged: bytes, data: int, chance: random.Random) -> bytes:
    """Mostly with a length that fits the damaged header, so that it is parsed at all."""
    if chance.random() < 0.1 or len(damaged) < 8 + data:
        return damaged
    return struct.pack("<Q", len(damaged) - 8 - data) + damaged[8:]


def test_tensors_of_other_sizes_are_refused_or_read_right(folder: Path) -> None:
    """Headers that are valid but say something else: the damage that random bytes seldom make."""
    outcomes: Counter[str] = Counter()
    good, metadata = files.read_tensors(folder / TENSORS)
    names = sorted(good)
    for seed in range(scale(1_400, 100_000)):
        chance = random.Random(seed)
        tensors = {name: tensor.clone() for name, tensor in good.items()}
        for _ in range(chance.choice((1, 1, 2))):
            name = chance.choice(names)
            if name in tensors:
                _change(tensors, name, chance)
        files.write_tensors(folder / TENSORS, tensors, metadata)
        reseal(folder)
        attempt(folder, outcomes, f"sizes {seed}")
    assert min(outcomes.values()) > 0
    assert len(outcomes) == 2
    record("adapters with other tensors", dict(outcomes))


def _change(tensors: dict[str, torch.Tensor], name: str, chance: random.Random) -> None:
    tensor = tensors[name]
    kind = chance.randrange(7)
    if kind == 0:
        tensors[name] = tensor.to(chance.choice([torch.int32, torch.int64, torch.float32, torch.bfloat16]))
    elif kind == 1:
        tensors[name] = tensor.flatten() if chance.random() < 0.5 else tensor.unsqueeze(0)
    elif kind == 2:
        tensors[name] = tensor[: chance.randrange(len(tensor) + 1)]
    elif kind == 3:
        del tensors[name]
    elif kind == 4:
        tensors[name + chance.choice((".x", "", " "))] = tensors.pop(name)
    elif tensor.numel():
        flat = tensor.view(-1)
        value: float = chance.choice((-1, 0, 7, 2**31 - 1, 3, 1))
        if kind == 6 and tensor.is_floating_point():
            value = float("nan")
        flat[chance.randrange(len(flat))] = value


def test_mutated_selections_are_refused_or_read_right(memory: Path) -> None:
    """No hash protects a selection: the reader alone does."""
    file = memory / "selection.safetensors"
    write_selection(file, tiny_selection())
    good = file.read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    outcomes: Counter[str] = Counter()
    for seed in range(scale(3_500, 100_000)):
        chance = random.Random(seed)
        damaged = mutate(good, chance)
        file.write_bytes(_with_its_length(damaged, len(good) - 8 - length, chance) if seed % 2 else damaged)
        try:
            selection = read_selection(file)
        except ModelError as error:
            is_one_line(error, f"selection {seed}")
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"selection {seed}: {type(error).__name__}: {error}") from error
        else:
            expected = independent(file)
            assert {f"{module}.indices" for module in selection.indices} == expected.keys()
            for module, index_OK in selection.indices.items():
                columns_OK = expected[f"{module}.indices"]
                assert np.array_equal(index_OK.numpy(), columns_OK)
                assert (np.diff(columns_OK, axis=1, prepend=-1) > 0).all()
            outcomes["accepted, and equal to NumPy's reading"] += 1
    assert len(outcomes) == 2
    record("mutated selections", dict(outcomes))


@pytest.mark.parametrize("part", ["state.json", "optimizer.safetensors", "rng.safetensors"])
def test_mutated_checkpoints_are_refused_or_restored_right(memory: Path, part: str) -> None:
    """Again with a manifest that agrees. What is restored is what JSON and NumPy read."""
    run_dir = memory / f"run-{part}"
    _save(run_dir, 1)
    checkpoint = run_dir / "checkpoint-1"
    file = checkpoint / "state" / part
    good = file.read_bytes()
    manifest = json.loads((checkpoint / files.MANIFEST).read_text())
    checkpoints = dataclasses.replace(_training()[0], run_dir=run_dir, source=AdapterFolder(checkpoint, {}))
    outcomes: Counter[str] = Counter()
    for seed in range(scale(1_000, 50_000)):
        chance = random.Random(f"{part} {seed}")
        damaged = mutate(good, chance)
        if part != "state.json" and seed % 2:
            (length,) = struct.unpack("<Q", good[:8])
            damaged = _with_its_length(damaged, len(good) - 8 - length, chance)
        file.write_bytes(damaged)
        digest = hashlib.sha256(damaged).hexdigest()
        manifest["files"][f"state/{part}"] = {"bytes": len(damaged), "sha256": digest}
        (checkpoint / files.MANIFEST).write_text(json.dumps(manifest))
        try:
            assert newest_complete(run_dir) == checkpoint
            check_unchanged(checkpoint, {}, {})
            progress = checkpoints.restore(*_training()[1])  # type: ignore[arg-type]
        except (ModelError, OutputError) as error:
            is_one_line(error, f"{part} {seed}")
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{part} {seed}: {type(error).__name__}: {error}") from error
        else:
            is_what_others_read(checkpoint, dataclasses.asdict(progress))
            outcomes["accepted, and equal to NumPy's reading"] += 1
    assert outcomes["refused"] > 0
    record(f"mutated checkpoints: {part}", dict(outcomes))


def is_what_others_read(checkpoint: Path, progress: dict[str, Any]) -> None:
    said = json.loads((checkpoint / "state" / "state.json").read_text(encoding="utf-8"))
    assert (said["progress"], said["recipe"], said["data"]) == (progress, {}, {})
    expected = independent(checkpoint / "state" / "optimizer.safetensors")
    held = optimizer_state.tensors_of(_training()[1][2])  # type: ignore[arg-type]
    assert held.keys() == expected.keys()
    assert all(np.array_equal(tensor.numpy(), expected[name]) for name, tensor in held.items())
    random_states = independent(checkpoint / "state" / "rng.safetensors")
    assert random.getstate()[1] == tuple(random_states["python"].tolist())
    assert np.array_equal(np.random.get_state(legacy=True)[1], random_states["numpy"])


def test_the_undamaged_adapter_is_accepted(folder: Path) -> None:
    is_what_numpy_reads(read_adapter(folder), folder)
    assert set(independent(folder / TENSORS)) == {
        PREFIX + name
        for module in tiny_adapter().deltas
        for name in (f"{module}.neuroada_indices", f"{module}.neuroada_values")
    } | {PREFIX + "score.weight", PREFIX + "score.bias"}


# ---------------------------------------------------------------------------------------------------
# Recipes and rows


def test_mutated_recipes_are_refused_or_valid(memory: Path) -> None:
    bundled = bundled_recipes()
    recipes = sorted((file.read_bytes() for file in bundled.values()), key=len)[:6]  # the others repeat them
    file = memory / "recipe.yaml"
    outcomes: Counter[str] = Counter()
    for seed in range(scale(3_000, 1_000_000)):
        chance = random.Random(seed)
        file.write_bytes(mutate(chance.choice(recipes), chance))
        try:
            load_recipe(file)
        except RecipeError as error:
            is_one_line(error, f"recipe {seed}")
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"recipe {seed}: {type(error).__name__}: {error}") from error
        else:
            outcomes["accepted"] += 1
    assert min(outcomes["refused"], outcomes["accepted"]) > 0
    record("mutated recipes", dict(outcomes))


ROWS = [
    {"instruction": f"add {i}", "input": "", "output": str(i), "n": i, "é": [1.5, None]} for i in range(5)
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.xz"])
def test_mutated_rows_are_refused_or_read_right(memory: Path, name: str) -> None:
    import lzma

    text = "\n".join(map(json.dumps, ROWS)) if "jsonl" in name else json.dumps(ROWS, indent=1)
    good = text.encode()
    file = memory / name
    outcomes: Counter[str] = Counter()
    for seed in range(scale(3_500, 100_000) if name == "rows.jsonl" else scale(1_000, 20_000)):
        chance = random.Random(seed)
        packed = name.endswith(".xz")
        file.write_bytes(mutate(lzma.compress(good) if packed else good, chance))
        try:
            rows, *_ = read_file(file)
        except DataError as error:
            is_one_line(error, f"{name} {seed}")
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{name} {seed}: {type(error).__name__}: {error}") from error
        else:
            expected = file.read_bytes() if not packed else lzma.decompress(file.read_bytes())
            assert rows == _as_others_read_them(expected)
            outcomes["accepted, and equal to Python's reading"] += 1
    assert outcomes["refused"] > 0
    record(f"mutated rows: {name}", dict(outcomes))


def _as_others_read_them(data: bytes) -> list[Any]:
    text = data.decode("utf-8-sig")
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]
