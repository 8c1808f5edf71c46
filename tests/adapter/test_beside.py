"""A tuned model and its base in turns: the base answers as it does alone, however its files name it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from random_adapter import adapter_of
from tiny_families import tiny
from tiny_tokenizer import byte_tokenizer
from torch import Tensor, nn

from neuroada_cli import files
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.beside import Loading, sides
from neuroada_cli.adapter.folder import read_adapter, write_adapter

TOKENS = torch.arange(40).view(2, 20)
# kind -> whether it is saved without its head, so that its files lack the prefix of the model's names;
# Mixtral's files call the router by another name than the model does
KINDS = {"gpt2": True, "bloom": True, "opt": True, "mixtral": False, "qwen2": False}


@torch.inference_mode()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_beside_its_tuned_model_answers_as_it_does_alone(kind: str, tmp_path: Path) -> None:
    model = tiny(kind)
    base = tmp_path / kind
    (model.base_model if KINDS[kind] else model).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    chance = torch.Generator().manual_seed(5)
    whole = {
        name: torch.randn(parameter.shape, generator=chance)
        for name, parameter in model.named_parameters()
        if name.endswith((".bias", "norm.weight", ".gate.weight"))
    }
    adapter = read_adapter(adapter_of(base, tmp_path / "plain"))
    with files.atomic_folder(tmp_path / "adapter") as folder:
        write_adapter(folder, dataclasses.replace(adapter, whole=whole))
    target = adapted.find_target(str(tmp_path / "adapter"))
    alone, tuned = logits(adapted.load(str(base), adapter.task).model), logits(adapted.load(target).model)
    assert not torch.equal(alone, tuned)
    _, models = sides(target, None, Loading(), both=True)
    for _ in range(2):
        for side, expected in zip(models, (alone, tuned), strict=True):
            with side.on():
                assert torch.equal(logits(side.model), expected), side.name
    assert set(adapted.load(target, keep_base=True).before) == set(whole)
    assert adapted.load(target).before == {}
