"""A config that asks for far more than its files hold is refused before anything so large is built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_bert, pico_gpt2, pico_llama
from tiny_adapter import write
from tiny_run import tiny_recipe
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BeitConfig,
    BeitForImageClassification,
    CLIPConfig,
    CLIPForImageClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from neuroada_cli import hub
from neuroada_cli.commands import select
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.plausible import bounded


def edit(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pico_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_vocabulary_is_not_missed_in_files_that_only_look(tmp_path: Path) -> None:
    """BEiT's configs name the vocabulary that its pretraining guessed, CLIP's the one of its other half."""
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 8}
    beit = BeitForImageClassification(BeitConfig(**sizes))
    clip = CLIPForImageClassification(CLIPConfig(vision_config=sizes, text_config={"vocab_size": 999}))
    for name, model in {"beit": beit, "clip": clip}.items():
        model.save_pretrained(tmp_path / name)
        assert hub.resolve_model(str(tmp_path / name)) == tmp_path / name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 300}, "num_hidden_layers is 300, but the files hold 2 numbered blocks"),
        ({"num_hidden_layers": 10**15}, "num_hidden_layers is 1,000,000,000,000,000"),
        ({"n_layer": 10**6}, "n_layer is 1,000,000"),
        ({"encoder_layers": 10**6}, "encoder_layers is 1,000,000"),
        ({"text_config": {"num_hidden_layers": 900}}, "text_config.num_hidden_layers is 900"),
        ({"vision_config": {"depth": 900}}, "vision_config.depth is 900"),
        ({"vocab_size": 97}, "vocab_size is 97, but the largest stored tensor has 96 rows"),
        ({"vocab_size": 10**12}, "vocab_size is 1,000,000,000,000"),
        ({"text_config": {"vocab_size": 10**9}}, "text_config.vocab_size is 1,000,000,000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1, but no model has so few"),
        ({"text_config": {"vocab_size": -5}}, "text_config.vocab_size is -5"),
        ({"num_labels": 10**9}, "num_labels is 1,000,000,000, but no model has so many"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1,000,000,000,000"),
        (
            {"hidden_size": 2**30},
            "hidden_size is 1,073,741,824, but the longest side of a stored tensor is 96",
        ),
        ({"intermediate_size": 10**9}, "intermediate_size is 1,000,000,000"),
        ({"num_key_value_heads": 10**7}, "num_key_value_heads is 10,000,000"),
        ({"text_config": {"num_local_experts": 10**8}}, "text_config.num_local_experts is 100,000,000"),
    ],
)
def test_what_the_files_cannot_hold_is_refused_before_anything_is_built(
    folder: Path, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "__init__", lambda self: pytest.fail("something is built"))
    with pytest.raises(ModelError, match="download config and weights once more") as caught:
        hub.resolve_model(str(edit(folder, **changes)))
    assert said in caught.value.line()
    assert str(folder / "config.json") in caught.value.line()


@pytest.mark.parametrize(
    "build",
    [
        pico_llama,
        pico_gpt2,
        pico_bert,
        lambda: pico_llama(tied=True, vocabulary=99),
        # one stored block for a hundred layers
        lambda: AlbertForMaskedLM(
            AlbertConfig(
                vocab_size=64, hidden_size=32, embedding_size=16, num_hidden_layers=48, num_attention_heads=2,
                intermediate_size=48,
            )
        ),
        # many stored tensors for one parameter
        lambda: MixtralForCausalLM(
            MixtralConfig(
                vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                num_local_experts=32, num_attention_heads=2, num_key_value_heads=2,
            )
        ),
    ],
    ids=["llama", "gpt2", "bert", "tied", "albert", "mixtral"],
)  # fmt: skip
def test_models_as_they_are_saved_are_taken(build: Any, tmp_path: Path) -> None:
    model: PreTrainedModel = build()
    model.save_pretrained(tmp_path)
    folder = hub.resolve_model(str(tmp_path))
    if not isinstance(model, AlbertForMaskedLM):
        task = "sequence-classification" if model.base_model_prefix == "bert" else "causal-lm"
        hub.open_base(folder, task)


@pytest.mark.parametrize("command", ["select", "train", "validate", "eval", "merge", "generate"])
def test_the_answer_comes_before_torch_is_imported(command: str, folder: Path, tmp_path: Path) -> None:
    """Through the command, in a process of its own: importing torch alone takes seconds."""
    edit(folder, num_hidden_layers=300)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps({"name": "x", "model": {"path": str(folder)}, "data": {"task": "due_dates"}}),
        encoding="utf-8",
    )
    words = [command, str(recipe)]
    if command == "eval":
        words = [command, str(folder), "--tasks", "boolq"]
    if command == "generate":
        words = [command, str(folder), "x"]
    if command == "merge":
        write(tmp_path / "adapter")
        words = [command, str(tmp_path / "adapter"), "--base", str(folder)]
    script = (
        "import sys\nfrom neuroada_cli.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    print(end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "4 False\n", done.stderr
    assert "num_hidden_layers is 300, but the files hold 2 numbered blocks" in done.stderr


def test_building_ends_when_there_is_far_more_than_the_files_could_fill(folder: Path) -> None:
    """Whatever a config calls its counts: experts of every layer, say."""
    made: list[int] = []

    def build() -> None:
        with bounded(hub.open_weights(folder)):
            for number in range(10**7):
                nn.Linear(1, 1, device="meta")
                made.append(number)

    with pytest.raises(ModelError, match="asks for more than 2,168 parameters, the files hold 21 tensors"):
        build()
    assert len(made) < 1_100
    nn.Linear(1, 1)  # and afterwards nobody counts


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"vocab_size": 95},
            r"embed_tokens.weight has the shape \[96, 32\], by config.json it is \[95, 32\]",
        ),
        ({"hidden_size": 64}, r"embed_tokens.weight has the shape \[96, 32\]"),
        ({"intermediate_size": 40}, r"\w+_proj.weight has the shape"),
        ({"num_key_value_heads": 4}, r"k_proj.weight has the shape"),
    ],
)
def test_another_size_is_refused_by_select_too(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit(folder, **changes)
    out = folder.parent / "run"
    with pytest.raises(ModelError, match=said):
        select.run(tiny_recipe(folder, out), quiet=True)
    assert not out.exists()


@pytest.mark.parametrize(
    ("build", "key", "place"),
    [
        (pico_llama, "num_hidden_layers", "model.layers"),
        (pico_gpt2, "n_layer", "transformer.h"),
        (pico_bert, "num_hidden_layers", "bert.encoder.layer"),
        (lambda: pico_llama(tied=True), "num_hidden_layers", "model.layers"),
    ],
)
@pytest.mark.parametrize("more", [1, 3])
def test_blocks_that_the_files_lack_are_no_layers_to_leave_out(
    build: Any, key: str, place: str, more: int, tmp_path: Path
) -> None:
    model = build()
    model.save_pretrained(tmp_path)
    layers = getattr(model.config, key)
    edit(tmp_path, **{key: layers + more})
    task = "sequence-classification" if model.base_model_prefix == "bert" else "causal-lm"
    with pytest.raises(
        ModelError, match=rf"asks for {layers + more} blocks in {place}, the files hold {layers}"
    ):
        hub.open_base(tmp_path, task)


def test_a_head_for_other_labels_is_made_anew(tmp_path: Path) -> None:
    pico_bert().save_pretrained(tmp_path)
    hub.open_base(tmp_path, "sequence-classification", num_labels=7)
    tensors = hub.open_weights(tmp_path).names
    assert "classifier.weight" in tensors


def test_a_config_nested_a_thousand_deep_is_refused(folder: Path) -> None:
    deep = folder / "config.json"
    deep.write_text('{"model_type": "llama", "a": ' + '{"a": ' * 400 + "1" + "}" * 401, encoding="utf-8")
    with pytest.raises(ModelError, match="nested too deeply"):
        hub.resolve_model(str(folder))


def test_a_cached_graph_is_compared_with_the_files_as_well(folder: Path) -> None:
    """The graph of a config is kept; the files beside that config may be others the next time."""
    hub.open_base(folder)
    tensors = dict(pico_llama(vocabulary=90).state_dict())
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    edit(folder, vocab_size=90)
    hub.open_base(folder)
    edit(folder, vocab_size=96)
    assert torch.is_tensor(tensors["lm_head.weight"])
    with pytest.raises(ModelError, match=r"\[90, 32\]"):
        hub.open_base(folder)
