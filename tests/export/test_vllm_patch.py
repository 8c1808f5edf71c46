"""vLLM's sparse patches: the base with them is the merged model to the bit, without them the base again."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import pico_gpt2, pico_llama
from random_adapter import adapter_of
from safetensors.torch import load_file
from tiny_adapter import change_tensors
from tiny_tokenizer import byte_tokenizer
from torch import Tensor, nn

from neuroada_cli import files
from neuroada_cli.commands import export, merge
from neuroada_cli.errors import NumericsError
from neuroada_cli.export.vllm_patch import FILE, HOW_TO, METADATA

READER = "vllm.model_executor.model_loader.checkpoint_weight_patch"


class Patch(NamedTuple):
    """As vLLM 0.33 has it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: Tensor
    indices: Tensor | None = None


class Served(nn.Module):
    """A model as a server holds it: weights by their names in the checkpoint, loaded by copying."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.held = {name: tensor.clone() for name, tensor in tensors.items()}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        weights = list(weights)
        for name, tensor in weights:
            self.held[name].copy_(tensor)
        return {name for name, _ in weights}


def contract() -> types.ModuleType:
    """What vLLM asks of a patch: flat positions in the checkpoint's tensor, each once, and no NaN."""

    def load(model: Served, patches: list[Patch], **_: Any) -> set[str]:
        loaded = set()
        for name, shape, dtype, values, indices in patches:
            assert indices is not None
            assert indices.dtype in (torch.int32, torch.int64)
            assert bool((indices.diff() > 0).all())
            assert values.dtype == dtype
            assert not values.isnan().any()
            assert tuple(model.held[name].shape) == shape
            flat = model.held[name].reshape(-1).clone()
            flat[indices.long()] = values
            loaded |= model.load_weights([(name, flat.view(shape))])
        return loaded

    module = types.ModuleType(READER)
    vars(module).update(CheckpointWeightPatch=Patch, load_checkpoint_weight_patches=load)
    return module


def real() -> types.ModuleType:
    """vLLM's own file, from an installation or its sources ($NEUROADA_VLLM); it needs torch alone."""
    place = os.environ.get("NEUROADA_VLLM")
    found = None if place else importlib.util.find_spec("vllm")
    if place is None and found is None:
        pytest.skip("vllm is not installed, and $NEUROADA_VLLM names no sources of it")
    root = Path(place) if place else Path(str(found and found.origin)).parents[1]
    spec = importlib.util.spec_from_file_location(READER, root / f"{READER.replace('.', '/')}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("reader", [contract, real])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_server_takes_an_adapter_and_gives_it_back(
    reader: Any, name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, parts = reader(), READER.split(".")
    for end in range(1, len(parts)):
        above = ".".join(parts[:end])
        monkeypatch.setitem(sys.modules, above, types.ModuleType(above))
    monkeypatch.setitem(sys.modules, READER, module)
    model = pico_llama() if name == "llama" else pico_gpt2()
    model.to(torch.bfloat16 if dtype == "bf16" else torch.float32).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    adapter = adapter_of(tmp_path / "base", tmp_path / "adapter", ragged=True)
    export.run(adapter, tmp_path / "patch", "vllm-sparse", dtype=dtype, quiet=True)
    merge.run(adapter, tmp_path / "merged", dtype=dtype, quiet=True)
    code: dict[str, Any] = {}
    exec((tmp_path / "patch" / "apply_patch.py").read_text(), code)
    base = load_file(tmp_path / "base" / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    served = Served(base)
    code["apply"](served, str(tmp_path / "patch" / FILE))
    assert all(torch.equal(served.held[key], tensor) for key, tensor in merged.items())
    assert any(not torch.equal(base[key], tensor) for key, tensor in merged.items())
    code["apply"](served, str(tmp_path / "patch" / FILE), which="base")
    assert all(torch.equal(served.held[key], tensor) for key, tensor in base.items())


def test_the_file_names_every_changed_tensor_and_no_other(tmp_path: Path) -> None:
    pico_llama().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    adapter = adapter_of(tmp_path / "base", tmp_path / "adapter")
    result = export.run(adapter, tmp_path / "patch", "vllm-sparse", quiet=True)
    tensors, metadata = files.read_tensors(tmp_path / "patch" / FILE)
    names = {key.rpartition(".")[0] for key in tensors}
    assert len(names) == 14
    assert all(name.endswith("_proj.weight") for name in names)
    changed = sum(len(tensor) for key, tensor in tensors.items() if key.endswith(".values"))
    assert f"{changed:,} changed weights" in result.about
    assert json.loads(metadata[METADATA]).keys() == names
    assert (tmp_path / "patch" / "apply_patch.py").read_text() == HOW_TO


def test_an_adapter_too_small_for_the_type_is_told(tmp_path: Path) -> None:
    pico_llama().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    adapter = adapter_of(tmp_path / "base", tmp_path / "adapter")
    change_tensors(adapter, lambda t: t.update({n: x * 1e-9 for n, x in t.items() if "values" in n}))
    with pytest.raises(NumericsError, match="no weight changes in bfloat16"):
        export.run(adapter, tmp_path / "patch", "vllm-sparse", dtype="bf16", quiet=True)
