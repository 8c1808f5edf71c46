"""What training and merging leave of a base: its numbers, its templates; what is passed over is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401

from neuroada_cli import hub
from neuroada_cli.errors import ModelError
from neuroada_cli.files import copy_file
from neuroada_cli.hub.companions import companions, looked_for
from neuroada_cli.hub.stored import own_dtype, rounded_by
from neuroada_cli.hub.weights import open_weights, weights_passed_over
from neuroada_cli.merging import folder
from neuroada_cli.merging.folder import copy_companions
from neuroada_cli.training import preflight
from neuroada_cli.training.remarks import remarks


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama_folder(tmp_path / "llama")


def test_rounding_is_counted(model: Path) -> None:
    file = model / "model.safetensors"
    half = {name: tensor.to(torch.float16) for name, tensor in load_file(file).items()}
    save_file(half, file, metadata={"format": "pt"})
    weights = open_weights(model)
    assert own_dtype(weights) == "fp16"
    changed = sum(int((t.bfloat16().half() != t).sum()) for t in half.values())
    assert rounded_by(weights, torch.bfloat16) == (changed, sum(t.numel() for t in half.values()))
    assert changed > 0
    assert rounded_by(weights, torch.float32)[0] == 0


def test_a_base_of_two_types_is_said_to_be_read_as_one(tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path / "base")
    file = folder / "model.safetensors"
    parts = {n: t if "norm" in n else t.bfloat16() for n, t in load_file(file).items()}
    norms = {n: torch.rand_like(t) for n, t in parts.items() if "norm" in n}
    save_file(parts | norms, file, metadata={"format": "pt"})
    changed = sum(int((t.bfloat16().float() != t).sum()) for t in norms.values())
    recipe = tiny_recipe(folder, tmp_path / "run", model={"path": str(folder), "dtype": "bf16"})
    said = list(remarks(preflight.check(recipe, False)))
    counted = f"training reads all of it so: {changed:,} of "
    assert [line for line in said if line.startswith("the base is bfloat16") and counted in line], said


def test_all_that_a_tokenizer_loads_goes_along(model: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    for name in ("additional_chat_templates/tools.jinja", "tekken.json", "video_preprocessor_config.json"):
        (model / name).write_text("{}")
    (model / "notes.pdf").write_bytes(b"")
    carried, left = companions(model, looked_for(model))
    assert {"additional_chat_templates/tools.jinja", "tekken.json", "tokenizer.json"} <= set(carried)
    assert "video_preprocessor_config.json" in carried
    assert left == ["notes.pdf"]
    assert not any(name.endswith(".safetensors") for name in carried)


@pytest.mark.parametrize("with_weights", [False, True])
def test_modules_of_a_sentence_model_go_along_with_their_list_or_neither(
    with_weights: bool, model: Path
) -> None:
    """A list that names folders which stayed behind stops sentence-transformers and llama.cpp's converter."""
    listed = [{"idx": n, "path": path} for n, path in enumerate(["", "1_Pooling", "2_Normalize", "../base"])]
    (model / "modules.json").write_text(json.dumps(listed))
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text("{}")
    if with_weights:
        (model / "1_Pooling" / "model.safetensors").write_bytes(b"")
    carried, left = companions(model, looked_for(model))
    assert (("modules.json" in carried), ("1_Pooling/config.json" in carried)) == (
        not with_weights,
        not with_weights,
    )
    assert ("1_Pooling" in left, "modules.json" in left) == (with_weights, with_weights)


def test_the_leavings_of_an_adapter_stay_behind(model: Path) -> None:
    """With them transformers would load the model that they name in place of the merged one."""
    (model / "adapter_config.json").write_text("{}")
    (model / "tokenizer.model.v3").write_bytes(b"")
    carried, left = companions(model, looked_for(model))
    assert left == ["adapter_config.json"]
    assert "tokenizer.model.v3" in carried


def test_weights_that_are_passed_over_are_named(model: Path) -> None:
    assert weights_passed_over(open_weights(model)) is None
    save_file({"x": torch.zeros(1)}, model / "model-00001-of-00001.safetensors")
    told = weights_passed_over(open_weights(model))
    assert told is not None
    assert "read from model.safetensors; not from model-00001-of-00001.safetensors" in told


def test_what_was_carried_over_once_needs_no_tokenizer_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a file of it that is another one does."""
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "cache"))

    class LoadedError(Exception):
        pass

    def carried(name: str) -> list[Path]:
        out = tmp_path / name
        out.mkdir()
        copy_file(model / "config.json", out / "config.json")
        copy_companions(model, out)
        return sorted(out.iterdir())

    first = carried("first")
    real = hub.loading.read_tokenizer

    def refuse(*_: object) -> None:
        raise LoadedError

    monkeypatch.setattr(hub.loading, "read_tokenizer", refuse)
    again = carried("again")
    assert [file.name for file in again] == [file.name for file in first]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(first, again, strict=True))
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    assert not looked_for(model).reads
    monkeypatch.setattr(hub.loading, "read_tokenizer", real)


def test_a_copy_that_reads_otherwise_is_refused_though_the_base_is_known(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "cache"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        copy_file(model / "config.json", tmp_path / name / "config.json")
    copy_companions(model, tmp_path / "first")

    def spoiled(source: Path, target: Path) -> None:
        copy_file(source, target)
        if target.name == "tokenizer.json":
            said = json.loads(target.read_text())
            vocabulary = said["model"]["vocab"]
            vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
            target.write_text(json.dumps(said))

    monkeypatch.setattr(folder.files, "copy_file", spoiled)
    with pytest.raises(ModelError, match="its tokenizer reads otherwise"):
        copy_companions(model, tmp_path / "second")
