"""Hashes of what a model is asked: the same for the same questions, another for any other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_tokenizer import byte_tokenizer

from neuroada_cli.data.batch import Example
from neuroada_cli.data.images import Picture
from neuroada_cli.evaluation.asked import prompts_sha256, tokenizer_sha256
from neuroada_cli.hub import load_tokenizer

ASKED = [Example("a", "b", "b", 0), Example("c", "d", "d", 1)]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "A"},
        {"answer": "B"},
        {"pair": "x"},
        {"lead": "x"},
        {"end": "x"},
        {"rendered": True},
        {"pictures": (Picture(b"x", None, "p"),)},
        {"row": 7},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_is_asked_or_right_counts(change: dict[str, object]) -> None:
    other = [replace(ASKED[0], **change), ASKED[1]]
    assert prompts_sha256(other) != prompts_sha256(ASKED)
    assert prompts_sha256(ASKED, ("x", "y")) != prompts_sha256(ASKED, ("y", "x"))
    assert prompts_sha256(iter(ASKED)) == prompts_sha256(ASKED)


def test_pictures_count_by_their_content_wherever_they_lie(tmp_path: Path) -> None:
    def hashed(folder: str, content: bytes) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.png").write_bytes(content)
        picture = Picture("a.png", tmp_path / folder, f"{folder}/rows.jsonl:1")
        return prompts_sha256([replace(ASKED[0], pictures=(picture,))])

    assert hashed("one", b"x") == hashed("two", b"x") != hashed("one", b"y")
    gone = Picture("gone.png", tmp_path, "p")
    assert len(prompts_sha256([replace(ASKED[0], pictures=(gone,))])) == 64, (
        "that it is gone is told elsewhere"
    )


def test_a_tokenizer_counts_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, two = (load_tokenizer(tmp_path / name) for name in "ab")
    two("a long text", truncation=True, max_length=2)
    assert tokenizer_sha256(one) == tokenizer_sha256(two) is not None
    two.add_tokens(["<more>"])
    assert tokenizer_sha256(one) != tokenizer_sha256(two)
    assert tokenizer_sha256(None) is None
