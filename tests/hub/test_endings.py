"""Which token ends an answer: the tokenizer's and the configs' are compared before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_llama_folder

from neuroada_cli import hub
from neuroada_cli.data.batch import Example
from neuroada_cli.data.encoding import encode
from neuroada_cli.errors import ModelError

ROWS = [Example("ask\n", "say", "say", 0)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Its tokenizer ends texts with </s> (2), which both configs name."""
    return tiny_llama_folder(tmp_path / "model")


def edit(folder: Path, file: str, **changes: Any) -> None:
    place = folder / file
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))


def learnt_end(folder: Path) -> int:
    [encoded], _ = encode(ROWS, hub.load_tokenizer(folder), 64)
    return encoded.input_ids[-1]


def test_tokenizer_and_configs_agree(folder: Path) -> None:
    tokenizer = hub.load_tokenizer(folder)
    assert hub.endings(tokenizer) == hub.Endings(frozenset({2}))
    edit(folder, "generation_config.json", eos_token_id=[9, 2])
    assert hub.endings(hub.load_tokenizer(folder)) == hub.Endings(frozenset({2, 9}))
    assert learnt_end(folder) == 2


@pytest.mark.parametrize(
    ("file", "other"), [("generation_config.json", "config.json"), ("config.json", "generation_config.json")]
)
def test_an_end_that_one_of_the_configs_does_not_name_is_said(folder: Path, file: str, other: str) -> None:
    edit(folder, file, eos_token_id=[5, 7] if file.startswith("g") else 5)
    found = hub.endings(hub.load_tokenizer(folder))
    assert found.remark is not None
    assert "'</s>' (token 2), but " + file + " names 5" in found.remark
    assert f"but {other}" not in found.remark
    assert learnt_end(folder) == 2
    assert found.ids >= {2, 5}


@pytest.mark.parametrize("named", ["</s>", ["</s>", 2], 2.0, True])
def test_an_end_that_is_no_number_is_said(folder: Path, named: Any) -> None:
    """Which transformers refuses in config.json, and hands on in the other until something is generated."""
    edit(folder, "generation_config.json", eos_token_id=named)
    found = hub.endings(hub.load_tokenizer(folder))
    value = named[0] if isinstance(named, list) else named
    said = f"generation_config.json names {str(value)!r} as eos_token_id, where a token's number belongs"
    assert found == hub.Endings(frozenset({2}), f"{said}; that is passed over")
    edit(folder, "generation_config.json", eos_token_id=[named, 5] if not isinstance(named, list) else named)
    if not isinstance(named, list):  # what else is to be said stays
        assert "(token 2), but generation_config.json names 5" in str(
            hub.endings(hub.load_tokenizer(folder)).remark
        )


@pytest.mark.parametrize("token", ["", "<|nowhere|>", "<unk>", "<s>"])
def test_an_end_at_which_the_model_would_not_stop_is_not_learnt(folder: Path, token: str) -> None:
    """An empty or unknown one, as in early LLaMA copies, and one that is a token of its own."""
    edit(folder, "tokenizer_config.json", eos_token=token)
    remark = hub.endings(hub.load_tokenizer(folder)).remark
    assert remark is not None
    assert repr(token) in remark
    assert "config.json names 2: answers end in '</s>' (2)" in remark
    assert learnt_end(folder) == 2


def test_the_configs_may_name_more_ends_than_one_or_hide_them_in_a_part(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", eos_token="")
    edit(folder, "generation_config.json", eos_token_id=None)
    edit(folder, "config.json", eos_token_id=None, text_config={"eos_token_id": [11, 2]})
    assert learnt_end(folder) == 11
    assert hub.endings(hub.load_tokenizer(folder)).ids == {2, 11}


def test_an_answer_that_ends_in_one_of_the_models_ends_needs_no_other(folder: Path) -> None:
    tokenizer = hub.load_tokenizer(folder)
    [end] = tokenizer("!", add_special_tokens=False)["input_ids"]
    edit(folder, "generation_config.json", eos_token_id=[2, end])
    [encoded], _ = encode([Example("ask\n", "say!", "say", 0)], hub.load_tokenizer(folder), 64)
    assert encoded.input_ids[-1] == end


@pytest.mark.parametrize(
    ("tokens", "config", "message"),
    [
        ({"eos_token": ""}, 9999, r"end token is '' .*names 9999.*, which the tokenizer has not"),
        ({"eos_token": ""}, 0, r"names 0, its unknown token"),
        ({"eos_token": ""}, [0, 9999], r"names 0, 9999, of which it has 0 alone, its unknown token"),
        ({"eos_token": ""}, None, r"end token is '' .*no config names another"),
        ({"eos_token": "", "unk_token": ""}, 2, "unknown token is none of its tokens; mend unk_token"),
    ],
)
def test_what_no_text_can_end_in_is_refused(
    folder: Path, tokens: dict[str, str], config: int | list[int] | None, message: str
) -> None:
    edit(folder, "tokenizer_config.json", **tokens)
    for file in ("config.json", "generation_config.json"):
        edit(folder, file, eos_token_id=config)
    with pytest.raises(ModelError, match=message) as failure:
        learnt_end(folder)
    assert str(folder) in failure.value.line()


def test_a_tokenizer_that_fails_on_a_row_is_named_with_it(folder: Path) -> None:
    tokenizer = hub.load_tokenizer(folder)
    whole = type(tokenizer).__call__

    class Failing(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
            if any("bad" in each for each in ([text] if isinstance(text, str) else text)):
                raise RuntimeError("no such thing\nas this")
            return whole(self, text, *args, **kwargs)

    tokenizer.__class__ = Failing
    with pytest.raises(ModelError, match=r"the tokenizer fails on 'ask\\nbad': no such thing$"):
        encode([*ROWS, Example("ask\n", "bad", "bad", 1)], tokenizer, 64)
