"""What a model folder says and nobody acts upon is told by every command that reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import pico_llama
from tiny_run import one_thread, tiny_llama_folder, tiny_recipe  # noqa: F401  (the fixture is used by all)
from tokenizers import Tokenizer

from neuroada_cli import hub
from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands import merge, select, train
from neuroada_cli.errors import ModelError

SMALL: dict[str, Any] = {
    "data": {"limit": 8, "validation_limit": 2},
    "train": {"epochs": 1},
    "eval": {"max_new_tokens": 1, "limit": 2},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama_folder(tmp_path / "llama")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_of_an_ordinary_model_nothing_is_said(folder: Path) -> None:
    assert not list(hub.ignored_of_model(folder))
    assert not list(hub.ignored_of_tokenizer(hub.load_tokenizer(folder)))


@pytest.mark.parametrize("bare", [False, True])
def test_of_blocks_that_the_config_does_not_ask_for(bare: bool, tmp_path: Path) -> None:
    model = pico_llama(num_hidden_layers=4)
    (model.model if bare else model).save_pretrained(tmp_path)
    whole = hub.open_base(tmp_path, "causal-lm" if not bare else "sequence-classification", num_labels=2)
    assert not list(hub.ignored_of_model(tmp_path, graph=whole.graph))
    for asked, told in ((3, "layers.3"), (2, "layers.2-3")):
        edit(tmp_path / "config.json", num_hidden_layers=asked)
        base = hub.open_base(tmp_path, whole.task, num_labels=2)
        (line,) = hub.ignored_of_model(tmp_path, graph=base.graph)
        assert line.startswith(
            f"the files hold {'' if bare else 'model.'}{told}, config.json asks for {asked} "
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"quantization_config": {"quant_method": "made_up", "bits": 3}},
            "of a kind that transformers does not know ('made_up') and is ignored: the weights are taken",
        ),
        ({"quantization_config": {"quant_method": ["x"] * 10**5}}, "does not know (\"['x', 'x'"),
        (
            {"auto_map": {"AutoModelForCausalLM": "code.Llama"}},
            "its own Python code (auto_map in config.json) is not run: transformers' own llama is used",
        ),
    ],
)
def test_of_a_config(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit(folder / "config.json", **changes)
    (line,) = hub.ignored_of_model(folder)
    assert said in line
    assert len(line) < 400


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_a_known_quantisation_is_for_loading_to_judge(folder: Path, method: str) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": method})
    assert not list(hub.ignored_of_model(folder))


def test_trusted_code_is_not_ignored(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "code.Llama"})
    assert not list(hub.ignored_of_model(folder, trust_remote_code=True))


def test_a_tokenizer_that_is_nothing_but_code_is_refused_with_the_right_remedy(folder: Path) -> None:
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="FooTokenizer",
        auto_map={"AutoTokenizer": ["code.Foo", None]},
    )
    with pytest.raises(ModelError, match=r"is Python code of its own .* set model.trust_remote_code to true"):
        hub.load_tokenizer(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer_class": "FooTokenizer"}, "names the class 'FooTokenizer', which is not"),
        # transformers takes another one where tokenizer.json is not of the class that is named
        (
            {"tokenizer_class": "LlamaTokenizerFast"},
            "names the class 'LlamaTokenizerFast', which is not used",
        ),
        ({"auto_map": {"AutoTokenizer": ["code.Mine", None]}}, "is not run for the tokenizer"),
    ],
)
def test_of_a_tokenizer(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit(folder / "tokenizer_config.json", **changes)
    (line,) = hub.ignored_of_tokenizer(hub.load_tokenizer(folder))
    assert said in line


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", "FooTokenizer", "GPT2Tokenizer"])
def test_bytes_are_read_as_tokenizer_json_says_whatever_class_is_named(folder: Path, name: str) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class=name)
    text = "two  words\n of bytes: \N{SNOWMAN}"
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert hub.load_tokenizer(folder)(text, add_special_tokens=False)["input_ids"] == expected


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend"])
def test_a_class_that_says_nothing_is_not_missed(folder: Path, name: str) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class=name)
    assert not list(hub.ignored_of_tokenizer(hub.load_tokenizer(folder)))


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_command_says_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "made_up"})
    edit(folder / "tokenizer_config.json", tokenizer_class="FooTokenizer")
    recipe = tiny_recipe(folder, tmp_path / "run", **SMALL)

    def said() -> Iterator[str]:
        select.run(recipe, out=tmp_path / "chosen.safetensors")
        yield capsys.readouterr().err
        train.run(recipe)
        yield capsys.readouterr().err
        merge.run(tmp_path / "run", tmp_path / "out")
        yield capsys.readouterr().err
        evaluate.run(str(tmp_path / "run"), out=tmp_path / "answers")
        yield capsys.readouterr().err

    for number, text in enumerate(said()):
        assert "quantization_config in config.json" in words(text), number
        assert ("'FooTokenizer', which is not used" in words(text)) is (number in (1,)), number
    # the run keeps a tokenizer of its own, without the odd name
    assert "made_up" not in (tmp_path / "out" / "config.json").read_text(encoding="utf-8")
