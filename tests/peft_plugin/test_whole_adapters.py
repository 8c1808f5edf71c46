"""Under PEFT an adapter is there with all that it holds, or it is refused: no tensor is left out silently."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_llama
from random_adapter import adapter_of
from tiny_families import SIZES, tiny
from tiny_tokenizer import byte_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, FalconConfig, FalconForCausalLM

from neuroada_cli import files
from neuroada_cli.adapter import load as adapted
from neuroada_cli.delta.mixtures import routers_of
from neuroada_cli.delta.targets import targets_of

pytest.importorskip("peft")
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)

from neuroada_cli.peft_plugin import NeuroAdaConfig

TOKENS = torch.arange(40).view(2, 20)
MIXTURES = ("qwen3_moe", "mixtral", "jetmoe")
KINDS = ("llama", "gpt2", "falcon", *MIXTURES)


def made(kind: str) -> Any:
    if kind == "llama":
        return pico_llama()
    if kind == "falcon":  # works its head's width out itself
        sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
        return FalconForCausalLM(FalconConfig(**sizes))
    return tiny(kind)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    for kind in KINDS:
        made(kind).save_pretrained(place / kind)
        byte_tokenizer().save_pretrained(place / kind)
    return {kind: place / kind for kind in KINDS}


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(input_ids=TOKENS).logits
    return found


def plain(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_answers_as_we_do_or_says_what_it_cannot_hold(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    names = list(targets_of(plain(bases[kind])))
    routers = [name for name in names if name in routers_of(plain(bases[kind]))]
    answers = []
    for number, targets in enumerate([("all-linear",), *([(routers[0],)] if routers else [])]):
        folder = adapter_of(bases[kind], tmp_path / str(number), targets=targets)
        expected = logits(adapted.load(str(folder)).model)
        try:
            found = logits(PeftModel.from_pretrained(plain(bases[kind]), folder))
        except ValueError as error:
            answers.append(str(error))
        else:
            torch.testing.assert_close(found, expected)
            answers.append("held")
    wanted = "`neuroada merge` folds all of it into a plain checkpoint"
    assert all(answer == "held" or answer.endswith(wanted) for answer in answers), answers
    assert (answers[0] == "held") == (kind in ("llama", "gpt2")), answers


def inject(model: Any, folder: Path) -> Any:
    config = PeftConfig.from_pretrained(folder)
    model = inject_adapter_in_model(config, model)
    tensors, _ = files.read_tensors(folder / "adapter_model.safetensors")
    set_peft_model_state_dict(model, tensors)
    return model


def read(model: Any, folder: Path) -> Any:
    return PeftModel.from_pretrained(model, folder)


def read_slim(model: Any, folder: Path) -> Any:
    return PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=True)


@pytest.mark.parametrize("way", [read, read_slim, inject])
@pytest.mark.parametrize(
    "name", ["mlp.experts.down_proj.neuroada_values", "extra.neuroada_indices", "odd.bias"]
)
def test_a_tensor_without_a_place_is_named(
    way: Any, name: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Also one that the config does not speak of."""
    folder = adapter_of(bases["llama"], tmp_path / "adapter")
    expected = logits(adapted.load(str(folder)).model)
    assert torch.equal(logits(way(plain(bases["llama"]), folder)), expected)
    file = folder / "adapter_model.safetensors"
    tensors, metadata = files.read_tensors(file)
    files.write_tensors(file, tensors | {f"base_model.model.{name}": torch.zeros(2)}, metadata)
    with pytest.raises(ValueError, match=rf"holds {name}, which has no place .* `neuroada merge`"):
        way(plain(bases["llama"]), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_on_all_linear_says_that_experts_are_left_out(
    kind: str, bases: dict[str, Path]
) -> None:
    model, config = plain(bases[kind]), NeuroAdaConfig(task_type="CAUSAL_LM")
    if kind == "falcon":
        with pytest.raises(ValueError, match="is a FalconLinear"):
            get_peft_model(model, config)
    elif kind in MIXTURES:
        with pytest.warns(UserWarning, match=r"leaves out the experts, .* `neuroada train` adapts them"):
            get_peft_model(model, config)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            get_peft_model(model, config)
