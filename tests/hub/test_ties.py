"""A config that says tied, files that hold another head: the deltas of a targeted head stay with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import pico_gpt2, pico_llama
from safetensors.torch import load_file, save_file
from tiny_choice import selected
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401
from transformers import AutoModelForCausalLM

from neuroada_cli import hub
from neuroada_cli.adapter import load as adapted
from neuroada_cli.commands import merge, train
from neuroada_cli.errors import ModelError
from neuroada_cli.selection.file import check_ties

TOKENS = torch.arange(3, 43).view(2, 20)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_own_head(folder: Path, change: float = 0.5) -> Path:
    """The config goes on to say that they are tied."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    own = tensors[EMBEDDING].clone()
    own[7] += change
    save_file(tensors | {HEAD: own}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    return folder


def test_the_files_decide(tmp_path: Path) -> None:
    pico_llama(tied=True).save_pretrained(tmp_path)
    tied = hub.open_base(tmp_path)
    assert tied.apart == ()
    assert tied.graph.get_parameter(HEAD) is tied.graph.get_parameter(EMBEDDING)
    assert selected(tmp_path, ["lm_head"]).tied == {"lm_head": ["model.embed_tokens"]}
    with_own_head(tmp_path, change=0.0)
    assert hub.open_base(tmp_path).apart == (), "the same numbers twice are one weight"
    with_own_head(tmp_path)
    base = hub.open_base(tmp_path)
    assert base.apart == (HEAD,)
    for model in (base.graph, base.skeleton):
        assert model.get_parameter(HEAD) is not model.get_parameter(EMBEDDING)
    assert base.places.names(HEAD) == [HEAD]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
    selection = selected(tmp_path, ["lm_head"], k=2)
    assert selection.tied == {}
    chosen = loaded.lm_head.weight.abs().gather(1, selection.indices["lm_head"].long())
    assert torch.equal(chosen.sort(1, True).values, loaded.lm_head.weight.abs().topk(2, 1).values)


@pytest.mark.parametrize("own", [False, True])
def test_a_trained_head_is_merged_where_it_was_trained(own: bool, tmp_path: Path) -> None:
    base = tiny_llama_folder(tmp_path / "base", tied=True)
    if own:
        with_own_head(base)
    recipe = tiny_recipe(base, tmp_path / "run", select={"targets": ["lm_head"]}, train={"max_steps": 2})
    train.run(recipe, quiet=True)
    merge.run(tmp_path / "run", tmp_path / "out", quiet=True)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == ({HEAD} if own else {EMBEDDING})
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    subject = adapted.load(str(tmp_path / "run"))
    with torch.inference_mode():
        assert torch.equal(merged(TOKENS).logits, subject.model(TOKENS).logits)


def test_a_difference_that_the_data_type_swallows_is_refused(tmp_path: Path) -> None:
    """transformers compares what it has loaded: rounded to 16 bits the two may be the same."""
    pico_llama(tied=True).save_pretrained(tmp_path)
    with_own_head(tmp_path, change=1e-9)
    selection = selected(tmp_path, ["lm_head"])
    assert selection.tied == {}
    check_ties(selection, hub.load_model(tmp_path, "causal-lm", "fp32").model, "here")
    with pytest.raises(ModelError, match=r"lm_head is loaded as one weight with model\.embed_tokens"):
        check_ties(selection, hub.load_model(tmp_path, "causal-lm", "bf16").model, "here")


def test_other_names_of_a_tied_head(tmp_path: Path) -> None:
    pico_gpt2(tie_word_embeddings=True).save_pretrained(tmp_path)
    assert selected(tmp_path, ["lm_head"]).tied == {"lm_head": ["transformer.wte"]}
