"""`neuroada convert`: pickled weights once more as safetensors, to the bit; all else refuses pickles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from tiny_run import tiny_tokenizer

from neuroada_cli import hub
from neuroada_cli.commands import convert
from neuroada_cli.errors import ModelError, OutputError
from neuroada_cli.files import verify_folder


def pickled_folder(folder: Path, state: dict[str, object], shards: int = 1) -> Path:
    """A tiny Llama's folder as before safetensors, the second shard in torch's oldest format."""
    folder.mkdir()
    pico_llama().config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("a card\n")
    (folder / "training_args.bin").write_bytes(b"no weights")
    names = list(state)
    cut = [names[place::shards] for place in range(shards)]
    files = [f"pytorch_model-{n + 1:05d}-of-{shards:05d}.bin" for n in range(shards)]
    files = ["pytorch_model.bin"] if shards == 1 else files
    for number, (file, own) in enumerate(zip(files, cut, strict=True)):
        kept = {name: state[name] for name in own}
        torch.save(kept, folder / file, _use_new_zipfile_serialization=number == 0)
    if shards > 1:
        weight_map = {name: file for file, own in zip(files, cut, strict=True) for name in own}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def test_a_sharded_folder_keeps_every_value_and_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = pico_llama().half().state_dict()
    folder = pickled_folder(tmp_path / "old", expected, shards=2)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    result = convert.run(folder)
    assert result.out == tmp_path / "old-safetensors"
    assert "every value as it was" in capsys.readouterr().out
    verify_folder(result.out)
    weights = hub.open_weights(result.out)
    assert len(weights.files) == 2
    assert set(weights.names) == set(expected)
    assert all(torch.equal(weights.tensor(name), tensor) for name, tensor in expected.items())
    for name in ("config.json", "README.md", "tokenizer.json"):
        assert (result.out / name).read_bytes() == before[name]
    assert not list(result.out.glob("*.bin"))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    loaded = hub.load_model(hub.resolve_model(str(result.out)), "causal-lm", "fp16").model
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(ModelError, match="holds safetensors already: there is nothing to convert"):
        convert.run(result.out)


class Calls:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_run_something_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    state = {"a": torch.zeros(2), "b": Calls(tmp_path / "made")}
    folder = pickled_folder(tmp_path / "old", state)
    with pytest.raises(ModelError, match=r"pytorch_model.bin: wants to call posix.mkdir when opened"):
        convert.run(folder, quiet=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"old"}


def test_what_is_refused_before_a_process_starts(tmp_path: Path) -> None:
    folder = pickled_folder(tmp_path / "old", {"a": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"convert them once: neuroada convert .*old"):
        hub.resolve_model(str(folder))
    with pytest.raises(OutputError, match="lies inside the model"):
        convert.run(folder, folder / "new")
    with pytest.raises(OutputError, match="holds the model"):
        convert.run(folder, tmp_path)
    with pytest.raises(ModelError, match="hf download nobody/model --local-dir FOLDER"):
        convert.run("nobody/model")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"holds only pickles \(training_args.bin\), and none under a name"):
        convert.run(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config.json"):
        convert.run(folder)
