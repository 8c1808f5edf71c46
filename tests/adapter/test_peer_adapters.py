"""Adapters of LoRA, DoRA and LoReFT: their tensors have the stated rank, before layers of it are built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from tiny_adapter import change_config, change_tensors, tiny_selection

from neuroada_cli import files
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.folder import Adapter, read_adapter, write_adapter
from neuroada_cli.errors import ModelError
from neuroada_cli.methods import MethodFacts
from neuroada_cli.selection.file import Selection

PREFIX, RANK, INPUTS, OUTPUTS = "base_model.model.", 2, 32, 48  # of pico_llama's up_proj
LAYERS = ("model.layers.0", "model.layers.1")
TENSORS = {
    "lora": {
        "mlp.up_proj.lora_A.default.weight": (RANK, INPUTS),
        "mlp.up_proj.lora_B.default.weight": (OUTPUTS, RANK),
    },
    "loreft": {
        "loreft.rotate.parametrizations.weight.original": (RANK, INPUTS),
        "loreft.source.weight": (RANK, INPUTS),
        "loreft.source.bias": (RANK,),
    },
}
TENSORS["dora"] = {**TENSORS["lora"], "mlp.up_proj.lora_magnitude_vector.default.weight": (OUTPUTS,)}


def peer_adapter(method: str) -> Adapter:
    index_OK = torch.zeros(OUTPUTS, 1, dtype=torch.int32)
    indices = {f"{layer}.mlp.up_proj": index_OK.clone() for layer in LAYERS}
    whole = {
        f"{layer}.{name}": torch.full(shape, 0.5)
        for layer in LAYERS
        for name, shape in TENSORS[method].items()
    }
    selection = dataclasses.replace(tiny_selection(), indices=indices, k=1, tied={})
    assert isinstance(selection, Selection)
    deltas = {name: torch.zeros(OUTPUTS, 1) for name in indices}
    settings = {"method": method, "peer": {"rank": RANK, "alpha": None, "dropout": 0.0, "positions": 7}}
    return Adapter(selection, deltas, whole, "base/model", None, "causal-lm", settings)


@pytest.fixture(params=sorted(TENSORS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with files.atomic_folder(tmp_path / "adapter") as temporary:
        write_adapter(temporary, peer_adapter(request.param))
    return tmp_path / "adapter"


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_adapter(folder)
    return caught.value.line()


def test_what_such_a_method_trains_is_accepted(folder: Path) -> None:
    adapter = read_adapter(folder)
    assert adapter.settings["peer"]["rank"] == RANK
    change_config(folder, lambda c: c["settings"].update(peer={"rank": RANK}))  # the rest has defaults
    assert read_adapter(folder).whole.keys() == adapter.whole.keys()


def test_a_rank_that_the_tensors_do_not_have_is_refused(folder: Path) -> None:
    for peer, rank in (({"rank": 10_000_000}, 10_000_000), ({"rank": 3}, 3), ({}, 8), (None, 8)):
        change_config(folder, lambda c, peer=peer: c["settings"].update(peer=peer))
        line = refusal(folder)
        assert f"rank {rank} makes it [{rank}, *]" in line
        assert "model.layers.0." in line


@pytest.mark.parametrize("shape", [(RANK, 0), (RANK,), (RANK, INPUTS, 1), (RANK + 1, INPUTS), ()])
def test_a_tensor_of_another_shape_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    method = read_adapter(folder).settings["method"]
    name = f"{LAYERS[1]}.{next(iter(TENSORS[method]))}"
    change_tensors(folder, lambda t: t.update({PREFIX + name: torch.ones(shape)}))
    assert f"{name} is {list(shape)}, rank 2 makes it [2, *]" in refusal(folder)


def test_a_missing_tensor_and_one_too_many_are_refused(folder: Path) -> None:
    method = read_adapter(folder).settings["method"]
    last = list(TENSORS[method])[-1]
    name, other = f"{LAYERS[1]}.{last}", f"model.layers.2.{last}"
    change_tensors(folder, lambda t: t.update({PREFIX + other: t[PREFIX + name]}))
    saved = sorted({key.rpartition(".")[0] for key in [*peer_adapter(method).whole, other]})
    change_config(folder, lambda c: c.update(modules_to_save=saved))
    assert f"{other} belongs to no target of {method}" in refusal(folder)
    change_tensors(folder, lambda t: t.pop(PREFIX + name))
    saved = sorted({key.rpartition(".")[0] for key in [*peer_adapter(method).whole, other] if key != name})
    change_config(folder, lambda c: c.update(modules_to_save=saved))
    assert f"{name} is missing, which {method} trains" in refusal(folder)


@pytest.mark.parametrize("change", ["inputs", "rows", "targets"])
def test_what_does_not_fit_the_base_is_refused_before_anything_is_built(
    folder: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = read_adapter(folder)
    monkeypatch.setattr(MethodFacts, "build", lambda *_: pytest.fail("layers were built"))
    if change == "inputs":
        name = next(iter(adapter.whole))
        adapter.whole[name] = torch.ones(RANK, 7)
        told = rf"does not fit its base: {name} is \[2, 7\], rank 2 makes it \[2, 32\]"
    elif change == "rows":
        adapter.selection.indices["model.layers.1.mlp.up_proj"] = torch.zeros(1, 1, dtype=torch.int32)
        told = "up_proj: 1 rows, the base has 48"
    else:
        adapter.selection.indices["model.layers.9.mlp.up_proj"] = torch.zeros(OUTPUTS, 1, dtype=torch.int32)
        told = "model.layers.9.mlp.up_proj is not a linear layer of the base model"
    with pytest.raises(ModelError, match=told):
        adapted.put_on(pico_llama(), adapter, "here")


def test_a_fitting_one_is_put_on_its_base(folder: Path) -> None:
    adapter = read_adapter(folder)
    if adapter.settings["method"] != "loreft":
        pytest.importorskip("peft")
    model = pico_llama()
    adapted.put_on(model, adapter, "here")
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], tensor) for name, tensor in adapter.whole.items())
