"""Exports for stock PEFT, loaded by it: the same answers as ours, from PEFT's own layers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_bert, pico_gpt2, pico_llama
from tiny_adapter import change_config
from tiny_choice import selected
from tiny_merge import write_tiny_adapter
from tiny_tokenizer import byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from neuroada_cli import files, hub
from neuroada_cli.adapter import load as adapted
from neuroada_cli.adapter.folder import Adapter, write_adapter
from neuroada_cli.commands import export
from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.selection.choice import Choice, target_layers
from neuroada_cli.selection.from_files import select_from_files
from neuroada_cli.selection.spread import Spread

pytest.importorskip("peft")
from peft import PeftModel
from random_adapter import adapter_of

TOKENS = torch.arange(40).view(2, 20)


@pytest.mark.parametrize("kind", ["peft-supertuning", "peft-shira"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_stock_peft_answers_the_same(name: str, kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    classifier = name == "bert"
    (pico_bert().bert if classifier else pico_llama()).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    task: hub.ModelTask = "sequence-classification" if classifier else "causal-lm"
    adapter = adapter_of(base, tmp_path / "adapter", task, ragged=not classifier)
    result = export.run(adapter, tmp_path / "out", kind, quiet=True)
    auto: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    model = PeftModel.from_pretrained(auto.from_pretrained(base, dtype=torch.float32), tmp_path / "out")
    ours = adapted.load(str(adapter)).model
    with torch.inference_mode():
        found, expected = (m.eval()(input_ids=TOKENS).logits for m in (model, ours))
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert kind.removeprefix("peft-").upper() in result.about
    assert "large tensors are only sampled" in result.about, "the base's weights are not read"
    assert all(type(module).__module__.split(".")[0] != "neuroada_cli" for module in model.modules())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"./{os.path.relpath(base)}"
    with torch.inference_mode(), model.disable_adapter():
        assert not torch.allclose(model(input_ids=TOKENS).logits, expected)


@pytest.mark.parametrize("kind", ["peft-supertuning", "peft-shira"])
@pytest.mark.parametrize(
    "spread",
    [
        Spread(budget=1),
        Spread(budget=3),
        Spread(budget=8, coverage="model"),
        Spread(budget=9, coverage="block"),
        Spread(k_per={"*": 0, "o_proj": 1}),
        Spread(tile=8, budget=64),
    ],
)
def test_a_layer_without_a_connection_is_left_out(spread: Spread, kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    pico_llama().save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    opened = hub.open_base(base)
    selection = select_from_files(opened, Choice(target_layers(opened), spread))
    trained = {name for name, index_OK in selection.indices.items() if (index_OK >= 0).any()}
    assert len(trained) < len(target_layers(opened))
    deltas = {name: 0.5 * (index_OK >= 0) for name, index_OK in selection.indices.items()}
    adapter = Adapter(selection, deltas, {}, str(base), None, "causal-lm", {"dtype": "fp32"})
    with files.atomic_folder(tmp_path / "adapter") as folder:
        write_adapter(folder, adapter, byte_tokenizer())
    export.run(tmp_path / "adapter", tmp_path / "out", kind, quiet=True)
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(stock, tmp_path / "out").eval()
    with torch.inference_mode():
        found = model(input_ids=TOKENS).logits
        expected = adapted.load(str(tmp_path / "adapter")).model.eval()(input_ids=TOKENS).logits
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == trained


@pytest.mark.parametrize("kind", ["peft-supertuning", "peft-shira"])
def test_an_adapter_without_any_connection_is_refused(kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    pico_llama().save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    selection = selected(base, ("all-linear",), 1)
    for index_OK in selection.indices.values():
        index_OK.fill_(-1)
    deltas = {name: torch.zeros(index_OK.shape) for name, index_OK in selection.indices.items()}
    adapter = Adapter(selection, deltas, {}, str(base), None, "causal-lm", {"dtype": "fp32"})
    with files.atomic_folder(tmp_path / "adapter") as folder:
        write_adapter(folder, adapter, byte_tokenizer())
    with pytest.raises(ModelError, match="holds no connection"):
        export.run(tmp_path / "adapter", tmp_path / "out", kind, quiet=True)
    assert not (tmp_path / "out").exists()


def roberta(labels: int = 3) -> RobertaForSequenceClassification:
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3,
    }  # fmt: skip
    return RobertaForSequenceClassification(RobertaConfig(num_labels=labels, **settings))


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("peft-supertuning", "classifier"), ("peft-shira", "classifier"), (None, "classifier"),
        ("peft-supertuning", "classifier.out_proj"), ("peft-shira", "classifier.out_proj"),
    ],
)  # fmt: skip
def test_a_head_of_several_layers_is_one_module_to_peft(kind: str | None, head: str, tmp_path: Path) -> None:
    """PEFT adds `classifier` by itself; of a base with a head for other classes only its end is new. Without
    a kind: our own folder, by the plug-in.
    """
    base, out = tmp_path / "base", tmp_path / "out"
    roberta().save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    named = roberta().named_parameters()
    whole = {name: torch.randn(each.shape) for name, each in named if name.startswith(f"{head}.")}
    task: hub.ModelTask = "sequence-classification"
    write_tiny_adapter(tmp_path / "adapter", base, None, whole, task, num_labels=3, labels=["a", "b", "c"])
    if kind is None:
        import neuroada_cli.peft_plugin  # noqa: F401

        out = tmp_path / "adapter"
    else:
        export.run(tmp_path / "adapter", out, kind, quiet=True)
    stock = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(stock, out).eval()
    ours = adapted.load(str(tmp_path / "adapter")).model.eval()
    with torch.inference_mode():
        found, expected = (m(input_ids=TOKENS + 5).logits for m in (model, ours))
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_an_adapter_that_names_every_layer_of_its_head_is_still_read(tmp_path: Path) -> None:
    base = tmp_path / "base"
    roberta().save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    whole = {name: each.detach() for name, each in roberta().named_parameters() if "classifier" in name}
    task: hub.ModelTask = "sequence-classification"
    write_tiny_adapter(tmp_path / "adapter", base, None, whole, task, num_labels=3, labels=["a", "b", "c"])
    change_config(
        tmp_path / "adapter",
        lambda config: config.update(modules_to_save=["classifier.dense", "classifier.out_proj"]),
    )
    assert adapted.load(str(tmp_path / "adapter")).adapter is not None
    change_config(tmp_path / "adapter", lambda config: config.update(modules_to_save=["classifier.dense"]))
    with pytest.raises(ModelError, match="does not name the modules"):
        adapted.load(str(tmp_path / "adapter"))


def test_biases_that_trained_beside_connections_are_refused(tmp_path: Path) -> None:
    pico_bert().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    whole = {"bert.encoder.layer.0.output.dense.bias": torch.ones(32)}
    task: hub.ModelTask = "sequence-classification"
    write_tiny_adapter(tmp_path / "adapter", tmp_path / "base", None, whole, task, num_labels=2)
    with pytest.raises(ModelError, match=r"output\.dense has connections and a bias"):
        export.run(tmp_path / "adapter", tmp_path / "out", "peft-shira", quiet=True)
    assert not (tmp_path / "out").exists()


def test_what_stock_peft_cannot_hold_is_refused(tmp_path: Path) -> None:
    pico_gpt2().save_pretrained(tmp_path / "gpt2")
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    adapter = adapter_of(tmp_path / "gpt2", tmp_path / "adapter")
    with pytest.raises(ModelError, match="is a Conv1D"):
        export.run(adapter, tmp_path / "out", "peft-shira", quiet=True)
    assert not (tmp_path / "out").exists()
    pico_llama(tied=True).save_pretrained(tmp_path / "tied")
    selection = selected(tmp_path / "tied", ["lm_head"], k=1)
    deltas = {name: torch.ones(index_OK.shape) for name, index_OK in selection.indices.items()}
    tied = Adapter(selection, deltas, {}, str(tmp_path / "tied"), None, "causal-lm", {"dtype": "fp32"})
    with files.atomic_folder(tmp_path / "of-tied") as folder:
        write_adapter(folder, tied)
    with pytest.raises(ModelError, match="shares its weight with"):
        export.run(tmp_path / "of-tied", tmp_path / "out", "peft-supertuning", quiet=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "peft-superuning"}, "did you mean peft-supertuning"),
        ({"to": "peft-shira", "dtype": "bf16"}, "stored in fp32"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        export.run(tmp_path, tmp_path / "out", quiet=True, **options)
    assert words in caught.value.line()
