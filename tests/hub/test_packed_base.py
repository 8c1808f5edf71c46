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


def test_settings_without_a_method(tmp_path: Path) -> None:
    """MLX's name the bits alone, older ones of bitsandbytes say which."""
    pico_llama().save_pretrained(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    held = load_file(tmp_path / "model.safetensors")
    held[name] = held[name].to(torch.uint32)
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"0 more packed \(quantization_config in config.json\)"):
        hub.open_base(told(tmp_path, bits=4, group_size=64))
    with pytest.raises(ModelError, match="quant_method 'bitsandbytes'"):
        hub.open_base(told(tmp_path, load_in_4bit=True))


def test_scales_that_are_powers_of_two(tmp_path: Path) -> None:
    """As DeepSeek-V3.1 stores its scales."""
    pico_llama().save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    held[name] = held[name].to(torch.float8_e4m3fn)
    held[f"{name}_scale_inv"] = torch.ones(1, 1).to(torch.float8_e8m0fnu)
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"stores {name}.* and 1 more packed .*'fp8'.*a copy in 16 bits"):
        hub.open_base(told(tmp_path, quant_method="fp8"))


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"load_in_8bit": True},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "gptq", "bits": 4},
    ],
)
def test_plain_weights_that_the_config_calls_quantised(settings: dict[str, Any], tmp_path: Path) -> None:
    """Layers of another kind would be trained than the merged folder, without these settings, has."""
    pico_llama().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no packed weight.*take quantization_config out of config\.json"):
        hub.open_base(told(tmp_path, **settings))


def with_tensor(folder: Path, name: str, tensor: torch.Tensor) -> Path:
    held = load_file(folder / "model.safetensors") | {name: tensor}
    del held["model.layers.0.mlp.up_proj.weight"]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_packed_layout_that_the_config_does_not_tell(tmp_path: Path) -> None:
    """As tools leave it that write GPTQ's settings to a quantize_config.json alone."""
    pico_llama().save_pretrained(tmp_path)
    with_tensor(tmp_path, "model.layers.0.mlp.up_proj.qweight", torch.ones(2, 16, dtype=torch.int32))
    with pytest.raises(ModelError, match=r"up_proj\.qweight and 0 more packed .*no quant.*a copy in 16 bits"):
        hub.open_base(tmp_path)


def test_settings_of_the_text_part(tmp_path: Path) -> None:
    pico_llama().save_pretrained(tmp_path)
    with_tensor(tmp_path, "model.layers.0.mlp.up_proj.codes", torch.ones(2, 16, dtype=torch.int32))
    file = tmp_path / "config.json"
    text = {"text_config": {"quantization_config": {"quant_method": "aqlm"}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | text))
    with pytest.raises(ModelError, match=r"'aqlm' in config\.json's text_config\.quant.*a copy in 16 bits"):
        hub.open_base(tmp_path)


def test_plain_weights_that_the_text_part_calls_quantised(tmp_path: Path) -> None:
    """transformers takes the part's settings where it loads the text part alone."""
    pico_llama().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    text = {"text_config": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | text))
    with pytest.raises(ModelError, match=r"text_config\.quantization_config\), and its files hold no packed"):
        hub.open_base(tmp_path)


@pytest.mark.parametrize(("code", "nbytes"), [("F4", 16), ("F6_E2M3", 24)])
def test_numbers_of_less_than_a_byte(code: str, nbytes: int, tmp_path: Path) -> None:
    pico_llama().save_pretrained(tmp_path)
    entry = {"w": {"dtype": code, "shape": [4, 8], "data_offsets": [0, nbytes]}}
    header = json.dumps(entry).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(nbytes)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=rf"w is stored packed \({code}: .*a copy in 16 bits"):
        hub.open_base(tmp_path)
