"""What was asked of transformers once is not asked again, and what may have another answer is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import pico_llama
from tokenizers_table import MAKERS
from transformers import AutoTokenizer

from neuroada_cli import hub
from neuroada_cli.errors import ModelError
from neuroada_cli.hub import loading, tokenizer_class
from neuroada_cli.hub.kinds import Work


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "cache"))


def model_folder(place: Path) -> Path:
    pico_llama().save_pretrained(place)
    return place


def test_the_class_of_a_model_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = model_folder(tmp_path / "model"), []
    real = loading.read_auto_config
    monkeypatch.setattr(loading, "read_auto_config", lambda *given: asked.append(given) or real(*given))
    assert [hub.model_task(folder, Work()) for _ in range(2)] == ["causal-lm"] * 2
    assert len(asked) == 1
    assert hub.model_task(folder, Work("classification")) == "sequence-classification"
    assert len(asked) == 2


def test_a_refusal_is_not_kept(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    for _ in range(2):
        with pytest.raises(ModelError, match="llama writes texts, and transformers has no ImageTextToText"):
            hub.model_task(folder, Work(pictures=True))


def same(one: Any, other: Any, text: str) -> bool:
    return (
        type(one) is type(other)
        and one(text)["input_ids"] == other(text)["input_ids"]
        and one.decode(one(text)["input_ids"]) == other.decode(other(text)["input_ids"])
        and (one.special_tokens_map, one.chat_template) == (other.special_tokens_map, other.chat_template)
        and one.padding_side == other.padding_side
    )


@pytest.mark.parametrize("name", MAKERS)
def test_a_tokenizer_of_the_kept_class_is_the_one_that_was_chosen(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "model")
    MAKERS[name]().save_pretrained(folder)
    chosen = AutoTokenizer.from_pretrained(folder)
    first = tokenizer_class.read_tokenizer(folder)
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("asked again")
    )
    again = tokenizer_class.read_tokenizer(folder)
    for text in ("Two  spaces, é and 1500.\n", "</s> a<|im_end|>"):
        assert same(first, chosen, text)
        assert same(again, chosen, text)


@pytest.mark.parametrize("change", ["class", "template", "new file", "model type", "code"])
def test_a_changed_folder_is_asked_anew(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "model")
    MAKERS["GPT-2"]().save_pretrained(folder)
    tokenizer_class.read_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    if change == "class":
        settings["tokenizer_class"] = "GPT2Tokenizer"
    elif change == "template":
        settings["chat_template"] = "{{ messages }}"
    elif change == "code":
        settings["auto_map"] = {"AutoTokenizer": [None, None]}
    elif change == "new file":
        (folder / "added_tokens.json").write_text("{}")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    class AskedError(Exception):
        pass

    def ask(*_: Any, **__: Any) -> None:
        raise AskedError

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", ask)
    with pytest.raises(AskedError):
        tokenizer_class.read_tokenizer(folder)


def test_what_the_class_alone_makes_otherwise_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where AutoTokenizer hands the class more than the folder, only AutoTokenizer is right."""
    folder, asked = model_folder(tmp_path / "model"), []
    MAKERS["GPT-2"]().save_pretrained(folder)
    real = AutoTokenizer.from_pretrained

    def with_more(*given: Any, **named: Any) -> Any:
        asked.append(given)
        return real(*given, **named, eos_token="<s>")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", with_more)
    assert [tokenizer_class.read_tokenizer(folder).eos_token for _ in range(2)] == ["<s>"] * 2
    assert len(asked) == 2


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_what_may_run_code_of_its_own_is_asked_each_time(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = model_folder(tmp_path / "model"), []
    MAKERS["GPT-2"]().save_pretrained(folder)
    about = json.loads((folder / file).read_text(encoding="utf-8")) | {"auto_map": {"AutoX": "code.X"}}
    (folder / file).write_text(json.dumps(about), encoding="utf-8")
    real = AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda *given, **named: asked.append(given) or real(*given, **named),
    )
    for _ in range(2):
        tokenizer_class.read_tokenizer(folder)
    assert len(asked) == 2


def test_a_merged_models_tokenizer_is_known_from_its_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a merge changes in config.json, and an adapter's own files, say nothing of a tokenizer."""
    folder = model_folder(tmp_path / "model")
    MAKERS["GPT-2"]().save_pretrained(folder)
    tokenizer_class.read_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "id2label": {"0": "no"}}))
    (folder / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("asked"))
    tokenizer_class.read_tokenizer(folder)
