"""The axolotl plug-in: by the part of axolotl's interface that it uses, and by axolotl's own manager (slow).

axolotl wants Python 3.12 and versions of its own, so what runs here is the file of its source release that
defines plug-ins, with nothing of ours in it.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tarfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_llama
from tiny_tokenizer import SIZE, byte_tokenizer
from transformers import AutoModelForCausalLM

pytest.importorskip("peft")
from peft import PeftModel

from neuroada_cli.adapter.folder import read_adapter

RELEASE = "axolotl==0.21.0"
PLUGIN = "neuroada_cli.peft_plugin.axolotl"


@dataclass(frozen=True)
class AdapterCapabilities:
    """As axolotl 0.21 has it."""

    name: str
    lora_like: bool = False
    relora: bool = False


class Settings(dict[str, Any]):
    """axolotl's DictDefault: what is not there is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    base = types.ModuleType("axolotl.integrations.base")
    base.AdapterCapabilities, base.BasePlugin = AdapterCapabilities, object  # type: ignore[attr-defined]
    for name, module in (
        ("axolotl", types.ModuleType("axolotl")),
        ("axolotl.integrations", types.ModuleType("axolotl.integrations")),
        ("axolotl.integrations.base", base),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    yield importlib.import_module(PLUGIN).NeuroAdaPlugin()
    sys.modules.pop(PLUGIN, None)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    pico_llama(vocabulary=SIZE).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def test_a_new_adapter_is_made_saved_and_loaded_again(plugin: Any, base: Path, tmp_path: Path) -> None:
    cfg = Settings(adapter="neuroada", neuroada_k=2, lora_target_modules=["q_proj", "up_proj"])
    made, config = plugin.load_adapter(model(base), cfg)
    assert (config.k, config.task_type) == (2, "CAUSAL_LM")
    assert made.get_nb_trainable_parameters()[0] == 2 * 2 * (32 + 48)
    made.save_pretrained(tmp_path / "out")
    assert read_adapter(tmp_path / "out").selection.k == 2
    for inference in (True, False):
        again, _ = plugin.load_adapter(
            model(base), Settings(adapter="neuroada", lora_model_dir=str(tmp_path / "out")), inference
        )
        assert isinstance(again, PeftModel)
        assert any(p.requires_grad for p in again.parameters()) is not inference


def test_dpo_gets_the_config_alone_and_other_adapters_are_left_alone(plugin: Any, base: Path) -> None:
    made, config = plugin.load_adapter(None, Settings(adapter="neuroada", seed=7), config_only=True)
    assert made is None
    assert (config.k, config.seed, config.target_modules) == (1, 7, "all-linear")
    assert plugin.load_adapter(None, Settings(adapter="lora")) is None
    with pytest.raises(ValueError, match="choose magnitude"):
        plugin.load_adapter(None, Settings(adapter="neuroada", neuroada_criterion="biggest"))


def test_its_keys_are_strict(plugin: Any) -> None:
    module, _, name = plugin.get_input_args().rpartition(".")
    keys = getattr(importlib.import_module(module), name)
    assert keys(neuroada_k=3).neuroada_k == 3
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        keys(neuroada_k=0)


@pytest.mark.slow
def test_axolotls_own_manager_takes_it(base: Path, tmp_path: Path) -> None:
    """Its source release's PluginManager registers the plug-in and loads an adapter through it."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "--dest", str(tmp_path)]
    subprocess.run([*pip, "download", *options, RELEASE], check=True)
    subprocess.run([*pip, "install", "--target", str(tmp_path / "more"), "addict"], check=True)
    with tarfile.open(next(tmp_path.glob("axolotl-*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    source = next(tmp_path.glob("axolotl-*/src"))
    script = f"""
import sys
sys.path += [{str(source)!r}, {str(tmp_path / "more")!r}]
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault
from transformers import AutoModelForCausalLM
manager = PluginManager()
manager.register({PLUGIN + ".NeuroAdaPlugin"!r}, required=True)
assert manager.supports_adapter("neuroada") and manager.get_input_args() == [{PLUGIN + ".NeuroAdaArgs"!r}]
model = AutoModelForCausalLM.from_pretrained({str(base)!r})
found, config = manager.load_adapter(model, DictDefault(adapter="neuroada", neuroada_k=2))
found.save_pretrained({str(tmp_path / "out")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert read_adapter(tmp_path / "out").selection.k == 2
