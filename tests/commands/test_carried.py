"""What training and merging leave of a base: its numbers, its templates; what is passed over is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import one_thread, tiny_llama_folder  # noqa: F401

from neuroada_cli import hub
from neuroada_cli.hub.companions import companions
from neuroada_cli.hub.stored import own_dtype, rounded_by
from neuroada_cli.hub.weights import open_weights, weights_passed_over


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


def test_all_that_a_tokenizer_loads_goes_along(model: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    for name in ("additional_chat_templates/tools.jinja", "tekken.json", "video_preprocessor_config.json"):
        (model / name).write_text("{}")
    (model / "notes.pdf").write_bytes(b"")
    carried, left = companions(model, hub.load_tokenizer(model))
    assert {"additional_chat_templates/tools.jinja", "tekken.json", "tokenizer.json"} <= set(carried)
    assert "video_preprocessor_config.json" in carried
    assert left == ["notes.pdf"]
    assert not any(name.endswith(".safetensors") for name in carried)


def test_weights_that_are_passed_over_are_named(model: Path) -> None:
    assert weights_passed_over(open_weights(model)) is None
    save_file({"x": torch.zeros(1)}, model / "model-00001-of-00001.safetensors")
    told = weights_passed_over(open_weights(model))
    assert told is not None
    assert "read from model.safetensors; not from model-00001-of-00001.safetensors" in told
