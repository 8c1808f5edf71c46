"""Encoded rows that are kept: never others than those that encoding gives now."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import byte_tokenizer

from neuroada_cli.data import inputs, kept
from neuroada_cli.data.batch import Encoded, Example
from neuroada_cli.data.encoding import PART, EncodeReport, RowSink, encode
from neuroada_cli.hub.reader import Reader

LONG = 40


def rows(changed: int | None = None) -> list[Example]:
    """Different lengths, an earlier turn that is learnt, and one that is a row of its own."""
    found = [Example(f"ask {n}\n", "say it " * (1 + n % 3), "x", n) for n in range(6)]
    found.append(Example("a b c d\n", "end", "x", 6, learnt=((2, 4),), apart=(Example("a\n", "b", "x", 6),)))
    if changed is not None:
        found[changed] = Example("ask otherwise\n", "say", "x", changed)
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path))
    monkeypatch.setattr(kept, "MANY", 2)
    return tmp_path / kept.FOLDER


def encoded(examples: list[Example], tokenizer: object = None, **settings: object) -> list[Encoded]:
    how = {"max_length": LONG} | settings
    found, report = inputs.encode_for(Reader(tokenizer or byte_tokenizer()), examples, **how)
    plain, counted = encode(examples, tokenizer or byte_tokenizer(), **how)
    assert found == plain
    assert report == counted
    return found


def test_the_same_rows_are_encoded_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encoded(rows())
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "encode", lambda *_: pytest.fail("encoded again"))
        again, _ = inputs.encode_for(Reader(byte_tokenizer()), rows(), LONG)
    assert again == first
    assert len(list(cache.iterdir())) == 1


def test_whatever_changes_leads_to_another_file(cache: Path) -> None:
    encoded(rows())
    encoded(rows(changed=3))
    encoded(rows()[:-1])
    encoded(rows(), max_length=12, too_long="cut")
    encoded(rows(), max_length=12, too_long="drop")
    encoded(rows(), loss_on_prompt=True)
    encoded(rows(), published=True)
    encoded(rows(), byte_tokenizer(bos=False))
    encoded(rows(), byte_tokenizer(eos_token="!"))
    assert len(list(cache.iterdir())) == 9


def test_an_earlier_call_of_the_tokenizer_changes_nothing(cache: Path) -> None:
    tokenizer = byte_tokenizer()
    encoded(rows(), tokenizer)
    tokenizer("cut to three", truncation=True, max_length=3)
    encoded(rows(), tokenizer)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("broken", [b"", b"\0" * 64, b"whole but for a byte", b"shorter"])
def test_a_broken_file_is_made_again(cache: Path, broken: bytes) -> None:
    encoded(rows())
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    ends = {b"shorter": whole[:-9], b"whole but for a byte": whole.replace(b'"I32"', b'"I31"', 1)}
    file.write_bytes(ends.get(broken, broken))
    encoded(rows())
    assert file.read_bytes() == whole


def test_few_rows_and_foreign_tokenizers_leave_nothing(cache: Path) -> None:
    foreign = type("Foreign", (type(byte_tokenizer()),), {"__module__": "transformers_modules.x"})
    tokenizer = byte_tokenizer()
    tokenizer.__class__ = foreign
    encoded(rows(), tokenizer)
    encoded(rows()[:1])
    assert not cache.exists()


def test_rows_with_pictures_are_made_each_time(cache: Path) -> None:
    picture: Any = object()
    examples = [replace(each, pictures=(picture,)) for each in rows()]

    def make(sink: RowSink) -> EncodeReport:
        found, report = encode(examples, byte_tokenizer(), LONG)
        sink.extend(replace(row, pictures=(picture,)) for row in found)
        return report

    for _ in range(2):
        found, _report = kept.encoded_once(examples, byte_tokenizer(), [], make)
        assert all(row.pictures == (picture,) for row in found)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(kept, "MANY", 2)
    encoded(rows())


def test_what_was_not_used_for_longest_goes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    encoded(rows())
    (first,) = cache.iterdir()
    monkeypatch.setattr(kept, "MOST_BYTES", int(2.5 * first.stat().st_size))
    encoded(rows(changed=1))
    os.utime(first, (1, 1))
    encoded(rows(changed=2))
    assert len(list(cache.iterdir())) == 2
    assert not first.exists()


def test_progress_counts_every_row(cache: Path) -> None:
    told: list[int] = []
    many = [Example(f"{n}\n", "x", "x", n) for n in range(PART + 3)]
    encode(many, byte_tokenizer(), LONG, watch=told.append)
    assert told == [PART, 3]
