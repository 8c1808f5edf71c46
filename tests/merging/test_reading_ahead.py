"""The next tensor of the base is read while one is written: never into memory that is still looked at."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from safetensors.torch import load_file, save_file
from tiny_merge import write_tiny_adapter

from neuroada_cli.commands import merge
from neuroada_cli.errors import NumericsError
from neuroada_cli.merging import merge as folding
from neuroada_cli.merging.job import Job, prepare

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    pico_llama().save_pretrained(tmp_path / "base")
    whole = {"model.norm.weight": torch.full_like(pico_llama().model.norm.weight, 1.5)}
    write_tiny_adapter(tmp_path / "adapter", tmp_path / "base", whole=whole)
    return prepare(tmp_path / "adapter", tmp_path / "out")


def planned(job: Job) -> list[str]:
    return [entry.name for shard in job.merge.shards() for entry in shard]


@pytest.mark.parametrize("ahead", [0, 4000, 1 << 28])  # nothing, the smaller ones, every tensor
def test_whoever_takes_his_time_gets_the_same_tensors(
    ahead: int, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    merge.run(tmp_path / "adapter", tmp_path / "merged", quiet=True)
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    monkeypatch.setattr(folding, "AHEAD", ahead)
    readers: set[str] = set()
    read_into = type(job.merge.weights).read_into

    def watched(self, name, buffer):
        readers.add(threading.current_thread().name)
        return read_into(self, name, buffer)

    monkeypatch.setattr(type(job.merge.weights), "read_into", watched)
    slow = prepare(tmp_path / "adapter", tmp_path / "out").merge
    for shard in slow.shards():
        for entry, tensor in zip(shard, slow.tensors(shard), strict=True):
            time.sleep(0.005)  # whatever is read meanwhile is read by now
            assert torch.equal(tensor, expected[entry.name]), entry.name
    assert any(name.startswith("reader") for name in readers) == (ahead > 0)
    assert slow.stats == job_stats(tmp_path)


def job_stats(tmp_path: Path) -> folding.FoldStats:
    """Of the same merge, tensor after tensor."""
    alone = prepare(tmp_path / "adapter", tmp_path / "out").merge
    for shard in alone.shards():
        for entry in shard:
            alone._tensor(entry, alone._base_tensor(entry, alone._buffers[0]))
    return alone.stats


def test_a_broken_tensor_is_told_when_it_is_its_turn(job: Job, tmp_path: Path) -> None:
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    names = planned(job)
    broken = names[len(names) // 2]
    tensors[broken].view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    job.adapter.selection.fingerprint.clear()  # the base is another now; here its numbers are the matter
    tensors_of = job.merge.tensors(job.merge.shards()[0])
    for _ in names[: len(names) // 2]:
        next(tensors_of)
    with pytest.raises(NumericsError, match=broken):
        next(tensors_of)
    assert not any(thread.name.startswith("reader") for thread in threading.enumerate())
