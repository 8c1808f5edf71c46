"""Reading a damaged adapter right is not yet merging it right: the shards, against NumPy's own sums."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counting import record, scale
from test_mutations import PREFIX, independent, is_one_line
from tiny_adapter import TENSORS
from tiny_choice import selected
from tiny_run import tiny_llama_folder

from neuroada_cli import files
from neuroada_cli.adapter.folder import Adapter, write_adapter
from neuroada_cli.commands import merge
from neuroada_cli.errors import ModelError, NumericsError

Array = np.ndarray[Any, Any]
WHOLE = "model.norm.weight"


def test_accepted_mutants_merge_to_what_numpy_folds(tmp_path: Path) -> None:
    """In fp32, and rounded to bf16 by integer arithmetic on the bits; into one shard, and into many."""
    base = tiny_llama_folder(tmp_path / "base")
    folder = adapter_of(base, tmp_path / "adapter")
    good, weights = (folder / TENSORS).read_bytes(), independent(base / "model.safetensors")
    (length,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + length])
    manifest = json.loads((folder / files.MANIFEST).read_text())
    outcomes: Counter[str] = Counter()
    for seed in range(scale(160, 5_000)):
        chance = random.Random(seed)
        damaged = good[: 8 + length] + mutate_values(header, good[8 + length :], chance)
        (folder / TENSORS).write_bytes(damaged)
        digest = hashlib.sha256(damaged).hexdigest()
        manifest["files"][TENSORS] = {"bytes": len(damaged), "sha256": digest}
        (folder / files.MANIFEST).write_text(json.dumps(manifest))
        dtype, shard = chance.choice(("fp32", "bf16")), chance.choice((None, 20_000))
        try:
            out = merge.run(
                folder, tmp_path / "out", str(base), dtype, max_shard_bytes=shard, overwrite=True, quiet=True
            ).out
        except (ModelError, NumericsError) as error:
            is_one_line(error, f"seed {seed}")
            outcomes["refused"] += 1
            continue
        merged = {
            name: tensor for file in out.glob("*.safetensors") for name, tensor in independent(file).items()
        }
        assert_folded(merged, weights, independent(folder / TENSORS), dtype)
        outcomes["merged, and equal to NumPy's fold"] += 1
    assert outcomes["refused"] > 0
    assert outcomes["merged, and equal to NumPy's fold"] > scale(96, 3_000)
    record("merged mutants", dict(outcomes))


def adapter_of(base: Path, folder: Path) -> Path:
    """Small deltas on inner layers of a base that is there, and a norm that was trained whole."""
    selection = selected(base, ["up_proj", "q_proj"], 3)
    generator = torch.Generator().manual_seed(0)
    deltas = {n: 0.1 * torch.randn(i.shape, generator=generator) for n, i in selection.indices.items()}
    whole = {WHOLE: torch.linspace(0.5, 1.5, 32)}
    adapter = Adapter(selection, deltas, whole, str(base), None, "causal-lm", {"dtype": "fp32"})
    with files.atomic_folder(folder) as temporary:
        write_adapter(temporary, adapter)
    return folder


def mutate_values(header: dict[str, Any], body: bytes, chance: random.Random) -> bytes:
    """At one to four places a number that is another one: of a value a flipped bit, 0, the opposite or an
    eighth; of an index, which seldom may be anything else, a low bit.
    """
    data = bytearray(body)
    floats, whole = ([e for e in header.values() if e.get("dtype") == kind] for kind in ("F32", "I32"))
    for _ in range(chance.randrange(1, 5)):
        entries, kind = (whole, 4) if chance.random() < 0.1 else (floats, chance.randrange(4))
        begin, end = chance.choice(entries)["data_offsets"]
        at = begin + 4 * chance.randrange((end - begin) // 4)
        old = struct.unpack_from("<f", data, at)[0]
        if kind == 4:
            data[at] ^= 1 << chance.randrange(5)
        elif kind == 3:
            data[at + chance.randrange(4)] ^= 1 << chance.randrange(8)
        else:
            struct.pack_into("<f", data, at, (0.0, -old, old / 8)[kind])
    return bytes(data)


def assert_folded(
    merged: dict[str, Array], base: dict[str, Array], adapter: dict[str, Array], dtype: str
) -> None:
    assert merged.keys() == base.keys()
    for name, weight_OI in base.items():
        module = PREFIX + name.removesuffix(".weight")
        folded = adapter.get(PREFIX + name, weight_OI).copy()
        if f"{module}.neuroada_indices" in adapter:
            rows_O1 = np.arange(len(folded))[:, None]
            folded[rows_O1, adapter[f"{module}.neuroada_indices"]] += adapter[f"{module}.neuroada_values"]
        expected = folded if dtype == "fp32" else bf16_bits(folded)
        assert merged[name].dtype == expected.dtype
        assert np.array_equal(merged[name], expected), name


def bf16_bits(values: Array) -> Array:
    """The upper half of the bits, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
