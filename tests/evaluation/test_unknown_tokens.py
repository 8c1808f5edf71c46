"""A tokenizer of another model is named as such, wherever rows meet the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import pico_bert, pico_llama
from tiny_run import tiny_llama_folder, tiny_recipe
from tiny_tokenizer import SIZE, byte_tokenizer

from neuroada_cli import hub
from neuroada_cli.commands import select
from neuroada_cli.data.batch import Example
from neuroada_cli.errors import ModelError
from neuroada_cli.evaluation.generate import generate
from neuroada_cli.evaluation.run import likelihoods, predict
from neuroada_cli.evaluation.streaming import answer
from neuroada_cli.hub.reader import Reader
from neuroada_cli.tasks.registry import TASKS

TEXT = "what is it"


def strange(**settings: bool) -> Any:
    """A tokenizer with one token more than the model has embeddings."""
    tokenizer = byte_tokenizer(**settings)
    tokenizer.add_tokens(["what"])
    return tokenizer


def writer() -> Any:
    return pico_llama(vocabulary=SIZE, max_position_embeddings=128)


def classify() -> object:
    model = pico_bert(vocab_size=SIZE, max_position_embeddings=128)
    return predict(model, Reader(strange()), TASKS["cola"], [Example(TEXT, "", 1, 7)], "reft")


@pytest.mark.parametrize(
    "ask",
    [
        lambda: generate(writer(), strange(), [TEXT], 1),
        lambda: answer(writer(), strange(), [SIZE], 1),
        lambda: likelihoods(writer(), Reader(strange()), [Example("", TEXT, TEXT, 7)], 64),
        classify,
    ],
    ids=["generate", "answer", "likelihoods", "classify"],
)
def test_a_token_without_embedding_is_refused(ask: Callable[[], object]) -> None:
    with pytest.raises(
        ModelError, match=rf"token {SIZE}, but the model has {SIZE} embeddings; put the model"
    ):
        ask()


def test_choosing_by_rows_refuses_it_too(tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path / "base")
    tokenizer = hub.load_tokenizer(folder)
    tokenizer.add_tokens(["Date"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        ModelError, match="the tokenizer gives row 0 token 259, but the model has 259 embeddings"
    ):
        select.run(tiny_recipe(folder, tmp_path / "run", select={"criterion": "gradient"}), quiet=True)
