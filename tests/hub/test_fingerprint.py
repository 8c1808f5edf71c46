"""A base is what its config and its weights compute: whatever changes that makes another base of it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_llama
from tiny_choice import selected
from transformers import AutoConfig, AutoModel

from neuroada_cli import files, hub
from neuroada_cli.adapter.folder import Adapter, read_adapter, write_adapter
from neuroada_cli.commands import merge
from neuroada_cli.errors import ModelError
from neuroada_cli.hub.computing import computing
from neuroada_cli.selection.file import check_base

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
# family -> what is its own; together they have every key that the test below is about
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 4, "attn_logit_softcapping": 5.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "cohere": {"logit_scale": 0.25},
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64},
    "bert": {},
}
HINTS = {  # values that a family understands
    "hidden_act": "relu", "hidden_activation": "relu", "activation_function": "relu", "rope_type": "default",
    "layer_types": ["full_attention"], "position_embedding_type": "relative_key",
}  # fmt: skip
TOKENS_BS = torch.tensor([[5, 9, 17, 2, 40, 8, 3, 21, 60, 11, 7, 30]])


def other_values(config: Mapping[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """(key, config with another value there), for every key of a config."""
    found: list[tuple[str, dict[str, Any]]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            inner = other_values(value, f"{path}{key}.")
            found += [(name, {**config, key: changed}) for name, changed in inner]
            continue
        other: Any = HINTS.get(key)
        if other is None:
            if isinstance(value, bool):
                other = not value
            elif isinstance(value, int):
                other = max(1, value // 2) if value != 1 else 2
            elif isinstance(value, float):
                other = value * 0.5 if value else 0.25
            else:
                continue
        found.append((f"{path}{key}", {**config, key: other}))
    return found


def built(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor] | None) -> torch.nn.Module | None:
    """The model of a config with given weights; None where they do not fit it, or there is no such model."""
    try:
        loaded = AutoConfig.for_model(**json.loads(json.dumps(config)))
        torch.manual_seed(0)
        model = AutoModel.from_config(loaded, attn_implementation="eager").eval()
        if weights is not None:
            model.load_state_dict(weights)
    except Exception:
        return None
    return model


def computed(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS_BS)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_whatever_changes_what_is_computed_makes_another_base(family: str) -> None:
    """The key is tried on the model itself: nothing here knows which keys count."""
    start = built({"model_type": family, **SMALL, **FAMILIES[family]}, None)
    assert start is not None
    torch.manual_seed(1)
    weights = {name: torch.randn_like(tensor) / 4 for name, tensor in start.state_dict().items()}
    config = json.loads(start.config.to_json_string(use_diff=False))
    right = built(config, weights)
    assert right is not None
    before, ours = computed(right), {"format": 2, "config": computing(config), "layout": 0, "content": 0}
    moved, first = [], set(AutoConfig.for_model("llama").to_dict()) if family != "llama" else set()
    for key, changed in other_values(config):
        if key in first:  # what all have alike is tried on one of them
            continue
        model = built(changed, weights)
        if model is None or torch.allclose(computed(model), before, atol=1e-4):
            continue
        moved.append(key)
        said = hub.what_differs({**ours, "config": computing(changed)}, ours)
        assert said is not None, key
        assert key.split(".")[-1] in said, (key, said)
    assert moved


@pytest.fixture
def base(tmp_path: Path) -> Path:
    pico_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def edit(folder: Path, **changes: Any) -> None:
    """None takes a key away."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | changes
    config = {key: value for key, value in config.items() if value is not None}
    file.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "theta is 500000.0, it was 1"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}}, "rope_parameters"),
        ({"sliding_window": 16}, "its sliding_window is 16, it was not given"),
        ({"hidden_activation": "gelu"}, "its hidden_activation is 'gelu', it was not given"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"logit_scale": 0.5}, "logit_scale is 0.5"),
        ({"num_experts_per_tok": 4}, "num_experts_per_tok is 4"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
        ({"attention_bias": True}, "attention_bias is True, it was False"),
        ({"rope_parameters": None, "rope_theta": 5e5}, "rope_theta"),
        # what transformers does not take has no defaults to compare with
        ({"layer_types": ["full_attention"] * 9}, "its layer_types is ['full_attention'"),
    ],
)  # fmt: skip
def test_the_difference_is_named(base: Path, changes: dict[str, Any], said: str) -> None:
    fingerprint = hub.fingerprint(base)
    edit(base, **changes)
    with pytest.raises(ModelError, match="is not the base that was selected and trained on") as caught:
        check_base(fingerprint, base)
    assert said in caught.value.line()


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_version": "4.30.0", "_commit_hash": "abc"},
        {"_name_or_path": "/home/somebody/llama", "architectures": ["LlamaModel"], "name_or_path": "x"},
        {"dtype": "float16"},
        {"torch_dtype": "bfloat16", "dtype": None},
        {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}},
        {"use_cache": False},
        # the same, said as other versions of transformers say it, or left to a default
        {"rope_parameters": None},
        {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None},
        {"attention_bias": None, "pretraining_tp": None, "hidden_act": None},
    ],
)  # fmt: skip
def test_names_versions_types_paths_and_defaults_do_not_matter(base: Path, changes: dict[str, Any]) -> None:
    fingerprint = hub.fingerprint(base)
    edit(base, **changes)
    check_base(fingerprint, base)
    check_base(hub.fingerprint(base), base)
    written = hub.fingerprint(base)
    pico_llama().save_pretrained(base)  # written anew by a library
    check_base(written, base)


def test_the_same_rope_in_the_old_spelling(base: Path) -> None:
    scaled = {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}
    edit(base, rope_parameters=scaled)
    fingerprint = hub.fingerprint(base)
    edit(base, rope_parameters=None, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4.0})
    check_base(fingerprint, base)
    edit(base, rope_scaling={"type": "linear", "factor": 8.0})
    with pytest.raises(ModelError, match=r"rope_parameters.factor is 8.0, it was 4.0"):
        check_base(fingerprint, base)


def test_numbers_that_json_has_no_word_for(base: Path) -> None:
    """Mamba2's configs have [0.0, Infinity]."""
    edit(base, time_step_limit=[0.0, float("inf")])
    fingerprint = json.loads(json.dumps(hub.fingerprint(base), allow_nan=False))
    check_base(fingerprint, base)


@pytest.mark.parametrize(
    "key", [{"num_hidden_layers": 10**12}, {"layer_types": ["a"] * (2 << 20)}, {"x": {"y": -(10**30)}}]
)  # fmt: skip
def test_a_strangers_numbers_do_not_reach_the_library(
    base: Path, key: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    edit(base, num_hidden_layers=None)
    fingerprint = hub.fingerprint(base)
    monkeypatch.setattr(transformers.LlamaConfig, "from_dict", lambda *_: pytest.fail("was built"))
    with pytest.raises(ModelError, match="is not the base"):
        check_base(fingerprint | {"config": fingerprint["config"] | key}, base)


def test_a_newer_fingerprint_says_so(base: Path) -> None:
    with pytest.raises(ModelError, match="fingerprint has format 3; update neuroada"):
        check_base(hub.fingerprint(base) | {"format": 3}, base)


# -- tensors that are read whole


def large_base(folder: Path) -> Path:
    """Three weights and an embedding of 4 MiB, more than is hashed whole where it is only looked at."""
    torch.manual_seed(0)
    pico_llama(num_hidden_layers=1, intermediate_size=32_768, vocabulary=32_768).save_pretrained(folder)
    return folder


def adapter_on(
    base: Path, folder: Path, targets: list[str], fingerprint: dict[str, Any] | None = None
) -> Path:
    selection = selected(base, targets)
    if fingerprint is not None:
        selection = type(selection)(selection.indices, 1, "magnitude", fingerprint)
    deltas = {name: torch.full(index_OK.shape, 1e-3) for name, index_OK in selection.indices.items()}
    with files.atomic_folder(folder) as temporary:
        write_adapter(temporary, Adapter(selection, deltas, {}, str(base), None, "causal-lm"))
    return folder


def nudge(base: Path, name: str, place: int) -> None:
    """The smallest step there is, in one number."""
    file = base / "model.safetensors"
    tensors, metadata = files.read_tensors(file)
    flat = tensors[name].view(-1)
    flat[place] = torch.nextafter(flat[place], torch.tensor(torch.inf))
    files.write_tensors(file, tensors, metadata)


def test_one_number_of_a_large_tensor_is_noticed_by_merge(tmp_path: Path) -> None:
    base = large_base(tmp_path / "base")
    adapter = adapter_on(base, tmp_path / "adapter", ["all-linear"])
    file, chance = base / "model.safetensors", random.Random(0)
    good = file.read_bytes()
    names = [name for name in hub.open_weights(base) if hub.open_weights(base).info(name).nbytes == 4 << 20]
    assert len(names) == 5
    for name in names:
        nudge(base, name, chance.randrange(1 << 20))
        with pytest.raises(ModelError, match=f"is not the base that .* on: {name} differs in content"):
            merge.run(adapter, tmp_path / "out", quiet=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
        file.write_bytes(good)
    result = merge.run(adapter, tmp_path / "out", quiet=True)
    assert result.stats.compared == result.stats.read == len(hub.open_weights(base).names)


def test_what_is_only_sampled_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A selection of one small layer reads the smaller part of the files."""
    base = large_base(tmp_path / "base")
    adapter = adapter_on(base, tmp_path / "adapter", ["q_proj"])
    result = merge.run(adapter, tmp_path / "out")
    assert (result.stats.read, result.stats.compared) == (12, 7)
    assert "5 of 12 tensors are only sampled" in " ".join(capsys.readouterr().out.split())
    merge.run(adapter_on(base, tmp_path / "whole", ["all-linear"]), tmp_path / "other")
    assert "every tensor is what it was when connections were chosen" in " ".join(
        capsys.readouterr().out.split()
    )


# -- adapters of the first format

FIRST = {
    "format": 1,
    "config": {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "vocab_size": 96,
        "hidden_act": "silu", "rms_norm_eps": 1e-06, "tie_word_embeddings": False,
    },
}  # fmt: skip


def test_the_first_format_stays_readable(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = hub.fingerprint(base)
    first = now | FIRST
    adapter = adapter_on(base, tmp_path / "adapter", ["up_proj"], first)
    assert json.loads((adapter / "adapter_config.json").read_text())["format"] == 1
    assert read_adapter(adapter).selection.fingerprint == first
    edit(base, sliding_window=16)  # which it knew nothing of
    merge.run(adapter, tmp_path / "out")
    edit(base, rms_norm_eps=1e-5)
    with pytest.raises(ModelError, match="its rms_norm_eps is 1e-05, it was 1e-06"):
        check_base(first, base)
    edit(base, rms_norm_eps=None)
    with pytest.raises(ModelError, match="its rms_norm_eps is not given, it was 1e-06"):
        check_base(first, base)


def test_new_adapters_have_a_format_that_older_versions_refuse(base: Path, tmp_path: Path) -> None:
    adapter = adapter_on(base, tmp_path / "adapter", ["up_proj"])
    assert json.loads((adapter / "adapter_config.json").read_text())["format"] == 3
