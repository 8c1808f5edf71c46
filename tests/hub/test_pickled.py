"""Pickled weights: what the process that reads them cannot do, and what is believed of what it says."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuroada_cli.errors import ModelError, ResourceError
from neuroada_cli.hub import pickled, unpickle

SHUT_OFF = f"""
import os, runpy, socket, subprocess, sys
sys.path[0] = {str(pickled.READER.parent)!r}
import unpickle
assert unpickle.shut_off() is None

def refused(act):
    try:
        act()
    except (PermissionError, OSError) as error:
        return error.errno
    return 0

def write():
    with open("there", "r+b", buffering=0) as file:
        file.write(b"y")

print([
    refused(lambda: socket.socket()),
    refused(lambda: socket.socketpair()),
    refused(lambda: os.execv("/bin/true", ["true"])),
    refused(lambda: subprocess.run(["/bin/true"])),
    refused(lambda: os.unlink("there")),
    refused(lambda: os.rename("there", "elsewhere")),
    refused(lambda: os.kill(os.getppid(), 0)),
    refused(write),
])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_a_process_that_is_shut_off_has_no_network_no_programs_and_changes_no_file(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-I", "-c", SHUT_OFF], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    *calls, writing = json.loads(done.stdout)
    assert calls == [1] * 7, "EPERM of each"
    assert writing == 27, "EFBIG"
    assert (tmp_path / "there").read_bytes() == b"x"


# ---------------------------------------------------------------------------------------------------
# What is read


class Calls:
    """Would make a folder when unpickled by anything else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.folder),)


def test_only_tensors_by_name_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    for content, said in (
        ({"a": torch.zeros(2), "b": Calls(tmp_path / "made")}, r"wants to call posix.mkdir when opened"),
        ([torch.zeros(2)], "holds a list, not tensors by name"),
        ({}, "holds a dict, not tensors by name"),
        ({"a": torch.zeros(2), "step": 3}, "holds 'step', a int, which is no tensor by name"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a is a Tensor of layout torch.sparse_coo"),
        ({"model": {"a": torch.zeros(2)}}, "holds 'model', a dict"),
    ):
        torch.save(content, file)
        with pytest.raises(ValueError, match=said):
            unpickle.read(str(file))
    assert not (tmp_path / "made").exists()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a file of pickled weights, or was cut short"):
        unpickle.read(str(file))


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_sent_as_they_are(tmp_path: Path, zipped: bool) -> None:
    shared = torch.arange(12, dtype=torch.float32).view(3, 4)
    state = {
        "a": shared, "tied": shared, "turned": shared.T, "part": shared[1:, ::2],
        "half": torch.tensor([1.5, float("inf")], dtype=torch.bfloat16),
        "one": torch.tensor(3), "none": torch.zeros(0, 4), "flags": torch.tensor([True, False]),
    }  # fmt: skip
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    out = io.BytesIO()
    unpickle.send(out, str(file))
    out.seek(0)
    (shard,) = pickled._shards(out, [file], None)
    assert [name for name, _, _ in shard.plan] == list(state)
    for expected, found in zip(state.values(), shard.tensors, strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


# ---------------------------------------------------------------------------------------------------
# What is believed


def said(tmp_path: Path, *lines: object, data: bytes = b"", index: dict[str, str] | None = None) -> None:
    """Take everything from a process that says this."""
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    paths = [tmp_path / name for name in names][: len(lines)]
    for path in paths:
        path.write_bytes(b"0" * 64)
    stream = io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + data)
    for shard in pickled._shards(stream, paths, index):
        list(shard.tensors)


def one(name: str = "a", dtype: str = "float32", shape: tuple[int, ...] = (2,)) -> dict[str, object]:
    return {"tensors": [[name, dtype, shape]]}


@pytest.mark.parametrize(
    ("lines", "index", "expected"),
    [
        (
            [one(shape=(10**15,))],
            None,
            "declares 4,000,000,000,000,000 bytes of tensors, more than it can hold",
        ),
        ([one(name="a\nb")], None, "name, type or shape safetensors cannot hold"),
        ([one(name="__metadata__")], None, "name, type or shape safetensors cannot hold"),
        ([one(dtype="quint8")], None, "name, type or shape safetensors cannot hold"),
        ([one(shape=(-2,))], None, "name, type or shape safetensors cannot hold"),
        ([{"tensors": []}], None, "name, type or shape safetensors cannot hold"),
        ([{"error": "is odd"}], None, "is odd; take a copy"),
        ([one()], None, "a was cut short"),
        ([one(shape=(0,)), one(shape=(0,))], None, "holds a, which another file holds, too"),
        ([one(shape=(0,))], {"a": "pytorch_model-00002-of-00002.bin"}, "a is in pytorch_model-00001"),
        ([one(shape=(0,))], {}, "but pytorch_model.bin.index.json puts it nowhere"),
        (
            [one(shape=(0,))],
            {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00001-of-00002.bin"},
            "puts b in pytorch_model-00001-of-00002.bin, which lacks it",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, lines: list[object], index: dict[str, str] | None, expected: str
) -> None:
    with pytest.raises(ModelError, match=expected):
        said(tmp_path, *lines, index=index)


def test_without_a_shut_off_process_nothing_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"none can be made \(seccomp: no\); convert it on Linux"):
        said(tmp_path, {"open": "seccomp: no"})
    with pytest.raises(ModelError, match="ended the process that read it"):
        pickled._plan(io.BytesIO(b""), tmp_path / "pytorch_model.bin")
