"""Where parameters lie in the files: what is read by the map is what transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import pico_llama
from safetensors.torch import load_file, save_file
from tiny_families import tiny
from tiny_run import one_thread  # noqa: F401
from torch import Tensor
from transformers import AutoModelForCausalLM

from neuroada_cli import hub
from neuroada_cli.delta.layout import Layout
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.places import Run, Scattered

# their files: other names, a tensor for each expert, other names for all experts' tensor, names as they are
KINDS = ["gpt_neox", "mixtral", "qwen3_moe", "granitemoe", "gpt_oss", "llama4_text", "jamba", "phimoe"]


def read(base: hub.Base, runs: list[Run], shape: torch.Size) -> Tensor:
    """A parameter by the map alone."""
    rows = sum(run.count for run in runs)
    made = torch.full((rows, shape.numel() // rows), torch.nan)
    for run in runs:
        made[run.neurons] = run.rows(base.weights.tensor(run.stored), made.shape[1]).float()
    return made.view(shape)


@pytest.mark.parametrize("model_type", KINDS)
def test_every_parameter_is_read_as_it_is_loaded(model_type: str, tmp_path: Path) -> None:
    tiny(model_type).save_pretrained(tmp_path)
    base = hub.open_base(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        for runs in base.places.whole(name):
            assert torch.equal(read(base, runs, parameter.shape), parameter), name
    used = {held for name in base.graph.state_dict() for held in base.places.names(name)}
    assert used == set(base.weights)


def test_experts_lie_in_tensors_of_their_own(tmp_path: Path) -> None:
    tiny("mixtral").save_pretrained(tmp_path)
    places, name = hub.open_base(tmp_path).places, "model.layers.0.mlp.experts.gate_up_proj"
    (runs,) = places.copies(name, Layout(96, 32, experts=4))
    block = "model.layers.0.block_sparse_moe.experts"
    assert runs[:3] == [
        Run(f"{block}.0.w1.weight", 0, 48, 0, 32, 1),
        Run(f"{block}.0.w3.weight", 48, 48, 0, 32, 1),
        Run(f"{block}.1.w1.weight", 96, 48, 0, 32, 1),
    ]
    assert len(runs) == 8
    assert places.own_name(name) is None
    assert len(places.names(name)) == 8


def test_transposed_experts_lie_column_by_column(tmp_path: Path) -> None:
    tiny("gpt_oss").save_pretrained(tmp_path)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    (runs,) = hub.open_base(tmp_path).places.copies(name, Layout(96, 32, True, 4))
    assert runs == [Run(name, 96 * e, 96, 96 * 32 * e, 1, 96) for e in range(4)]


def test_places_of_chosen_columns_and_parts_of_runs() -> None:
    tensor = torch.arange(60).view(3, 20)
    run = Run("t", 10, 4, 7, 20, 2)  # neurons 10 … 13 at places 7, 27, 47, 67; inputs at every other place
    index_OK = torch.tensor([[0, 3], [1, 2]])
    part = run.within(slice(0, 12))
    assert part == Run("t", 10, 2, 7, 20, 2)
    assert tensor.view(-1)[part.flat(index_OK)].tolist() == part.rows(tensor, 5).gather(1, index_OK).tolist()
    assert run.within(slice(0, 10)) is None
    assert run.within(slice(12, 99)) == Run("t", 12, 2, 47, 20, 2)
    shifted = tensor[1:]  # a view does not begin where its storage does
    assert Run("t", 0, 1, 0, 20, 1).rows(shifted, 3).tolist() == [[20, 21, 22]]


@pytest.mark.parametrize("copies", [1, 2])
def test_a_tied_weight_is_found_once_for_each_stored_copy(tmp_path: Path, copies: int) -> None:
    pico_llama(tied=True).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    if copies == 2:
        save_file(
            tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"}
        )
    base = hub.open_base(tmp_path)
    names = {"model.embed_tokens.weight", "lm_head.weight"}
    assert set(base.places.names("lm_head.weight")) == (
        names if copies == 2 else {"model.embed_tokens.weight"}
    )
    assert len(base.places.copies("lm_head.weight", Layout(96, 32))) == copies


def test_what_the_files_lack_and_what_does_not_fit_is_said(tmp_path: Path) -> None:
    tiny("mixtral").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    places = hub.open_base(tmp_path).places
    with pytest.raises(
        ModelError, match=r"w1.weight and 7 more make the shape \[4, 96, 32\], .* needs \[4, 80, 32\]"
    ):
        places.copies("model.layers.0.mlp.experts.gate_up_proj", Layout(80, 32, experts=4))
    with pytest.raises(ModelError, match=r"holds no weight for model\.nowhere"):
        places.copies("model.nowhere.weight", Layout(1, 1))


def test_inputs_that_lie_scattered_are_refused(tmp_path: Path) -> None:
    tiny("mixtral").save_pretrained(tmp_path)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    with pytest.raises(Scattered, match="lie scattered"):  # rows longer than a stored tensor's
        hub.open_base(tmp_path).places.copies(name, Layout(1, 96 * 32 * 4))
