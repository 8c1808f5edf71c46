"""Heads and embeddings under PEFT: what it saves of them is read and merged as it answers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_llama
from tiny_tokenizer import byte_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from neuroada_cli import files
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.folder import read_adapter
from neuroada_cli.commands import merge
from neuroada_cli.errors import ModelError

pytest.importorskip("peft")
from peft import PeftModel, get_peft_model, get_peft_model_state_dict

from neuroada_cli.peft_plugin import NeuroAdaConfig

TOKENS = torch.arange(40).view(2, 20)
EMBEDDING = "embed_tokens"
HEAD_TOO = {"target_modules": ["q_proj", "lm_head"]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved_base(tmp_path / "base")


def saved_base(folder: Path, **changes: Any) -> Path:
    pico_llama(**changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(input_ids=TOKENS).logits
    return found


def plain(base: Path, tokens: int | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if tokens is not None:
        model.resize_token_embeddings(tokens)
    return model


def trained(model: Any, **settings: Any) -> Any:
    model = get_peft_model(model, NeuroAdaConfig(k=2, task_type="CAUSAL_LM", **settings))
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=chance))
    return model


@pytest.mark.parametrize(
    "settings",
    [
        HEAD_TOO,
        {"target_modules": r".*\.(q_proj|lm_head)|lm_head"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": [EMBEDDING]},
        {"modules_to_save": ["lm_head", EMBEDDING], "target_modules": ["q_proj"]},
    ],
)
def test_what_peft_saves_of_heads_is_read_and_merged_as_it_answers(
    settings: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    model = trained(plain(base), **settings)
    expected = logits(model)
    model.save_pretrained(tmp_path / "saved")
    assert not [name for name in get_peft_model_state_dict(model) if ".base_layer." in name]
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(PeftModel.from_pretrained(plain(base), tmp_path / "saved")), expected)
    assert torch.equal(logits(adapted.load(str(tmp_path / "saved")).model), expected)
    merge.run(tmp_path / "saved", tmp_path / "merged", quiet=True)
    assert torch.equal(logits(plain(tmp_path / "merged")), expected)


def test_a_folder_that_holds_the_bases_head_too_is_read(base: Path, tmp_path: Path) -> None:
    """As PEFT saves it by itself."""
    model = trained(plain(base), **HEAD_TOO)
    model.save_pretrained(tmp_path / "saved")
    new = read_adapter(tmp_path / "saved")
    tensors, metadata = files.read_tensors(tmp_path / "saved" / "adapter_model.safetensors")
    head = {"base_model.model.lm_head.base_layer.weight": plain(base).lm_head.weight.detach()}
    files.write_tensors(tmp_path / "saved" / "adapter_model.safetensors", tensors | head, metadata)
    config = files.read_json(tmp_path / "saved" / "adapter_config.json")
    config["modules_to_save"] = ["lm_head.base_layer"]
    files.write_json(tmp_path / "saved" / "adapter_config.json", config)
    old = read_adapter(tmp_path / "saved")
    assert old.whole == new.whole == {}
    assert torch.equal(logits(adapted.load(str(tmp_path / "saved")).model), logits(model))
    merge.run(tmp_path / "saved", tmp_path / "merged", quiet=True)
    assert torch.equal(logits(plain(tmp_path / "merged")), logits(model))
    assert torch.equal(logits(PeftModel.from_pretrained(plain(base), tmp_path / "saved")), logits(model))


def test_the_head_of_a_base_without_files_stays_in_the_folder(tmp_path: Path) -> None:
    """Nothing else may have it; once the folder names a base, it is read like any other."""
    made = pico_llama()
    weight = made.lm_head.weight.detach().clone()
    model = trained(made, **HEAD_TOO)
    model.save_pretrained(tmp_path / "saved")
    tensors, _ = files.read_tensors(tmp_path / "saved" / "adapter_model.safetensors")
    assert torch.equal(tensors["base_model.model.lm_head.base_layer.weight"], weight)
    config = files.read_json(tmp_path / "saved" / "adapter_config.json")
    config["base_model_name_or_path"] = "base/model"
    files.write_json(tmp_path / "saved" / "adapter_config.json", config)
    adapter = read_adapter(tmp_path / "saved")
    assert "lm_head" in adapter.deltas
    assert adapter.whole == {}


@pytest.mark.parametrize("settings", [{}, HEAD_TOO])
def test_resized_embeddings_are_kept_in_peft_and_told_here(
    settings: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    known = plain(base).config.vocab_size
    model = trained(plain(base, known + 5), **settings)
    model.save_pretrained(tmp_path / "saved")
    assert [name for name in get_peft_model_state_dict(model) if "lm_head" in name and "neuro" not in name]
    if not settings:
        again = PeftModel.from_pretrained(plain(base, known + 5), tmp_path / "saved")
        assert torch.equal(logits(again), logits(model))
    wanted = rf"{known + 5} rows, the base has {known}"
    if not settings:
        wanted = rf"\[{known + 5}, 32\], this model's is \[{known}, 32\]; its embeddings were resized before"
    with pytest.raises(ModelError, match=wanted):
        merge.run(tmp_path / "saved", tmp_path / "merged", quiet=True)
    with pytest.raises(ModelError):
        adapted.load(str(tmp_path / "saved"))


@pytest.mark.parametrize("whole", [["lm_head"], [EMBEDDING], ["lm_head", EMBEDDING]])
def test_one_user_of_a_tied_weight_trained_whole_is_told_and_never_merged_as_both(
    whole: list[str], tmp_path: Path
) -> None:
    """PEFT unties them. Trained apart, no merged model holds both; left alike, one does."""
    base = saved_base(tmp_path / "tied", tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="apart from .* `neuroada merge` and `neuroada eval` will refuse"):
        model = trained(plain(base), modules_to_save=whole)
    model.save_pretrained(tmp_path / "saved")
    for refused in (
        lambda: adapted.load(str(tmp_path / "saved")),
        lambda: merge.run(tmp_path / "saved", tmp_path / "merged", quiet=True),
    ):
        with pytest.raises(ModelError, match="no plain checkpoint can hold both; use it in PEFT as it is"):
            refused()
    assert not (tmp_path / "merged").exists()
    if len(whole) < 2:
        return
    inner = model.base_model.model
    with torch.no_grad():
        inner.lm_head.modules_to_save["default"].weight.copy_(
            inner.model.embed_tokens.modules_to_save["default"].weight
        )
    model.save_pretrained(tmp_path / "alike")
    merge.run(tmp_path / "alike", tmp_path / "merged", quiet=True)
    for answers in (adapted.load(str(tmp_path / "alike")).model, plain(tmp_path / "merged")):
        assert torch.equal(logits(answers), logits(model))


def test_modules_that_share_nothing_are_saved_whole_without_a_word(base: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trained(plain(base), modules_to_save=["lm_head", EMBEDDING])
