"""A rebuilt module graph says what the skeleton says, and is not taken where it could be another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import pico_bert, pico_gpt2, pico_llama
from safetensors.torch import load_file, save_file
from tiny_families import tiny
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from neuroada_cli import hub
from neuroada_cli.delta.layout import layer_shape
from neuroada_cli.delta.targets import find_targets, is_linear, sharing_modules
from neuroada_cli.errors import ModelError
from neuroada_cli.hub import graph, known
from neuroada_cli.hub.graph import described, rebuilt

MODELS = {
    "llama": pico_llama,
    "tied llama": lambda: pico_llama(tied=True),
    "gpt2": pico_gpt2,
    "bert": pico_bert,
    "albert": lambda: AlbertForSequenceClassification(AlbertConfig(hidden_size=24, num_attention_heads=4)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(num_layers=1, num_heads=2, d_model=16, d_ff=32, d_kv=8)
    ),
    # some of its settings each layer has for itself, and its config raises where the whole is asked
    "gemma4": lambda: tiny("gemma4_text", vocab_size_per_layer_input=96, hidden_size_per_layer_input=8),
}


def facts(model: nn.Module) -> dict[str, object]:
    """Everything that the code that walks a graph asks for."""
    linear = [name for name, module in model.named_modules() if is_linear(module)]
    return {
        "class": type(model).__name__,
        "modules": [(name, type(module).__name__) for name, module in model.named_modules()],
        "parameters": {n: (p.shape, p.dtype) for n, p in model.named_parameters(remove_duplicate=False)},
        "distinct": [name for name, _ in model.named_parameters()],
        "saved": list(model.state_dict()),
        "buffers": {name: (b.shape, b.dtype) for name, b in model.named_buffers()},
        "linear": {name: layer_shape(model.get_submodule(name)) for name in linear},
        "ties": sharing_modules(model, linear),
        "heads": hub.default_exclude(model),
        "targets": list(find_targets(model, heads=hub.default_exclude(model))),
        "norms": [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)],
        "padding": [m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding)],
        "prefix": model.base_model_prefix,
        "embeddings": model.get_input_embeddings().weight.shape,  # type: ignore[operator]
        "labels": model.config.num_labels,  # type: ignore[union-attr]
        "width": model.config.get_text_config().hidden_size,  # type: ignore[union-attr,operator]
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_rebuilt_graph_says_what_the_model_says(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    again = rebuilt(json.loads(json.dumps(described(model))))
    assert facts(again) == facts(model)
    assert all(parameter.is_meta for parameter in again.parameters())


def test_a_model_that_cannot_name_its_input_embeddings_has_none() -> None:
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    model = ConvNextForImageClassification(ConvNextConfig(**sizes))
    with pytest.raises(NotImplementedError):
        model.get_input_embeddings()
    again = rebuilt(described(model))
    assert again.get_input_embeddings() is None  # type: ignore[operator]
    assert list(find_targets(again, heads=hub.default_exclude(again))) == [
        f"convnext.encoder.stages.{stage}.layers.0.pwconv{n}" for stage in (0, 1) for n in (1, 2)
    ]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_classifier_without_a_body_of_its_own_name_has_a_head(kind: str, tmp_path: Path) -> None:
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 8}
    config = CONFIG_MAPPING[kind](vision_config=sizes)
    model = AutoModelForImageClassification.from_config(config)
    assert hub.default_exclude(model) == ["classifier"]
    folder = save(model, tmp_path / "base")
    assert hub.load_model(folder, "image-classification", "fp32", num_labels=5).fresh == [
        "classifier.weight", "classifier.bias",
    ]  # fmt: skip
    held = load_file(folder / "model.safetensors")
    lost = next(name for name in held if name.endswith("fc1.weight"))
    save_file({n: t for n, t in held.items() if n != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"fc1\.weight is missing from the weights"):
        hub.load_model(folder, "image-classification", "fp32", num_labels=5)


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_a_config_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "cache"))
    folder = save(pico_llama(), tmp_path / "model")
    first = hub.module_graph(folder, "causal-lm")
    monkeypatch.setattr(graph, "skeleton", lambda *_: pytest.fail("built again"))
    assert facts(hub.module_graph(folder, "causal-lm")) == facts(first)


@pytest.mark.parametrize("change", ["config", "labels", "task", "code", "version", "damage"])
def test_what_may_be_another_graph_is_built(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "cache"))
    folder = save(pico_llama(), tmp_path / "model")
    hub.module_graph(folder, "causal-lm")
    built: list[object] = []
    real = graph.skeleton
    monkeypatch.setattr(graph, "skeleton", lambda *given: built.append(given) or real(*given))
    task, labels = "causal-lm", None
    config = json.loads((folder / "config.json").read_text())
    if change == "config":
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    elif change == "code":
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": {}}))
    elif change == "damage":
        for file in (tmp_path / "cache" / "graphs").iterdir():
            file.write_text(file.read_text()[:-200])
    elif change == "version":
        monkeypatch.setattr(known.metadata, "version", lambda package: "0")
    elif change == "labels":
        task, labels = "sequence-classification", 3
    else:
        task = "sequence-classification"
    hub.module_graph(folder, task, labels)  # type: ignore[arg-type]
    assert built


def test_a_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "cache"))
    folder = save(pico_llama(), tmp_path / "model")
    assert facts(hub.module_graph(folder, "causal-lm"))["class"] == "LlamaForCausalLM"
