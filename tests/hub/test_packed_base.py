"""A base that was quantised before it was stored is refused by the name of its kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_llama
from safetensors.torch import load_file, save_file
from tiny_families import tiny

from neuroada_cli import hub
from neuroada_cli.errors import ModelError


def told(folder: Path, **settings: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
    return folder


def test_mxfp4_as_openai_stores_it(tmp_path: Path) -> None:
    tiny("gpt_oss", intermediate_size=32).save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    for name in [name for name in held if name.endswith("_proj") and held[name].ndim == 3]:
        experts, inputs, outputs = held.pop(name).shape
        held[f"{name}_blocks"] = torch.zeros(experts, outputs, inputs // 32, 16, dtype=torch.uint8)
        held[f"{name}_scales"] = torch.zeros(experts, outputs, inputs // 32, dtype=torch.uint8)
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"proj_blocks and 7 more packed \(quant_method 'mxfp4'"):
        hub.open_base(told(tmp_path, quant_method="mxfp4"))


@pytest.mark.parametrize(("method", "dtype"), [("fp8", torch.float8_e4m3fn), ("gptq", torch.int32)])
def test_other_kinds(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pico_llama().save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    held[name] = held[name].to(dtype)
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=f"stores {name} and 0 more packed .*'{method}'.*take a copy in 16 bits"
    ):
        hub.open_base(told(tmp_path, quant_method=method))


def test_a_config_alone_is_no_packed_base(tmp_path: Path) -> None:
    pico_llama().save_pretrained(tmp_path)
    assert hub.open_base(told(tmp_path, quant_method="made_up")).parameters
