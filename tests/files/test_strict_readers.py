"""JSON and safetensors are read strictly: what others would guess at is refused."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch

from neuroada_cli import files
from neuroada_cli.errors import DataError, ModelError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 2}', "a name appears twice"), (b'{"a": NaN}', "NaN is not JSON"),
        (b"1e999", "1e999 is too large"), (b"-Infinity", "-Infinity is not JSON"),
        (b'"\\ud800"', "half of a surrogate pair"), (b"[" * 100_000, "nested too deeply"),
        (b'{"a":\n1,}', r"x\.json:2: not valid JSON"), (b"\xff", "not valid JSON"), (b"", "not valid JSON"),
        (b"1" * 5000, "not valid JSON"),
    ],
)  # fmt: skip
def test_json_is_read_strictly(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(ModelError, match=message):
        files.read_json(tmp_path / "x.json")


def test_json_that_is_missing_or_huge_is_refused_in_the_class_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        files.read_json(tmp_path / "x.json", DataError)
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(ModelError, match="larger than 64 MiB"):
        files.read_json(tmp_path / "big.json")
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        files.read_json(tmp_path)


TENSORS = {
    "f32": torch.arange(6.0).view(2, 3),
    "bf16": torch.ones(3, dtype=torch.bfloat16),
    "i32": torch.tensor([[1, -2]], dtype=torch.int32),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "bool": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
    "strided": torch.arange(6.0).view(2, 3).t(),
}


def test_tensors_come_back_bit_by_bit_and_others_can_read_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    file = tmp_path / "x.safetensors"
    files.write_tensors(file, TENSORS, {"format": "pt"})
    read, metadata = files.read_tensors(file)
    assert metadata == {"format": "pt"}
    for found in (read, load_file(file)):
        assert set(found) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            assert torch.equal(found[name], tensor)
    read["f32"].add_(1)  # private: the file stays
    assert torch.equal(files.read_tensors(file)[0]["f32"], TENSORS["f32"])


def test_streaming_refuses_what_was_not_planned(tmp_path: Path) -> None:
    plan = [("a", torch.float32, (2,)), ("b", torch.float32, (2,))]
    one = torch.ones(2)
    for given in ([one], [one, one.double()], [one, torch.ones(3)], [one, one, one]):
        with pytest.raises(ValueError, match=r"should be|more tensors"):
            files.stream_tensors(tmp_path / "x", plan, given)
    for name in ("a", "__metadata__"):
        with pytest.raises(ValueError, match="no name for a tensor"):
            files.stream_tensors(tmp_path / "x", [*plan, (name, torch.float32, (2,))], [one] * 3)
    assert os.listdir(tmp_path) == []


def raw_file(path: Path, header: object, data: bytes = b"", pad: bool = True) -> Path:
    """A safetensors file with whatever header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8 if pad else 0)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: object, shape: object, begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry("F32", [2], 0, 8)}, b"\0" * 7, "cut short"),
        ({"a": entry("F32", [2], 0, 8)}, b"\0" * 9, "bytes behind its tensors"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, b"\0" * 12, "b overlaps"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, b"\0" * 8, "overlaps"),
        ({"a": entry("F32", [2], 4, 12)}, b"\0" * 12, "leaves a gap"),
        ({"a": entry("F32", [3], 0, 8)}, b"\0" * 8, "a takes 8 bytes"),
        ({"a": entry("F31", [2], 0, 8)}, b"\0" * 8, "data type F31"),
        ({"a": entry(["F32"], [2], 0, 8)}, b"\0" * 8, "broken header entry"),
        ({"a": entry("F32", [-2], 0, 8)}, b"\0" * 8, "broken header entry"),
        ({"a": entry("F32", [2.0], 0, 8)}, b"\0" * 8, "broken header entry"),
        ({"a": entry("F32", [True, 2], 0, 8)}, b"\0" * 8, "broken header entry"),
        ({"a": entry("F32", [0, 1 << 60], 0, 0)}, b"", "broken header entry"),
        ({"a": entry("F32", [0] + [1 << 50] * 2, 0, 0)}, b"", "broken header entry"),
        ({"a": entry("F32", [1] * 100, 0, 4)}, b"\0" * 4, "broken header entry"),
        ({"a": {"dtype": "F32"}}, b"", "broken header entry"),
        ({"a": 5}, b"", "broken header entry"),
        (["a"], b"", "broken safetensors header"),
        (b'{"a":{},"a":{}}', b"", "a name appears twice"),
        (b"{", b"", "broken safetensors header"),
        (b"[" * 100_000, b"", "broken safetensors header"),
        ('{"a": 1}'.encode("utf-16"), b"", "broken safetensors header"),
        ({"__metadata__": {"a": 1}, "a": entry("F32", [0], 0, 0)}, b"", "metadata that is not text"),
    ],
)
def test_a_malformed_tensor_file_is_refused(
    tmp_path: Path, header: object, data: bytes, message: str
) -> None:
    file = raw_file(tmp_path / "x.safetensors", header, data)
    with pytest.raises(ModelError, match=message) as caught:
        files.read_tensors(file)
    assert str(file) in caught.value.line()


def test_files_that_are_no_tensor_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with pytest.raises(ModelError, match="is missing"):
        files.read_tensors(file)
    for content in (b"", b"\0" * 7, b"\xff" * 8, b"\xff" * 100, struct.pack("<Q", 92) + b" " * 91):
        file.write_bytes(content)
        with pytest.raises(ModelError, match="is not a safetensors file, or was cut short"):
            files.read_tensors(file)


@pytest.mark.parametrize("length", range(1, 9))
def test_tensors_begin_at_multiples_of_8(tmp_path: Path, length: int) -> None:
    """As the format's own writer has it, so that a mapped tensor can be used where it lies."""
    files.write_tensors(tmp_path / "x.safetensors", {"x" * length: torch.ones(3)})
    (size,) = struct.unpack("<Q", (tmp_path / "x.safetensors").read_bytes()[:8])
    assert size % 8 == 0
