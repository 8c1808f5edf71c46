"""A run over rows that stay on the disk: bit for bit that of the same rows in memory, in a fraction of it."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tiny_run import (  # noqa: F401
    hashes,
    losses,
    one_thread,
    stop_in_step,
    tiny_llama_folder,
    tiny_recipe,
    tiny_tokenizer,
)

from neuroada_cli import files
from neuroada_cli.commands import train
from neuroada_cli.data import encoding, kept, sources, stored
from neuroada_cli.data.lazy import JsonLines, Lazy
from neuroada_cli.errors import DataError, ResourceError, Stopped
from neuroada_cli.hub.reader import Reader
from neuroada_cli.recipe.schema import DataSection, Recipe
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.training.rows import PreparedRows, prepare

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
FORMS: dict[str, list[dict[str, Any]]] = {
    "alpaca": [{"instruction": f"add {n}", "output": "é" * (n % 7) + str(n)} for n in range(40)],
    "chat": [
        {
            "messages": [
                {"role": "user", "content": f"{n}"},
                {"role": "assistant", "content": "x " * (n % 9) + "."},
            ]
        }
        for n in range(40)
    ],
    "pair": [
        {"question": n, "answer": n * n, "spare": "y"} for n in range(40)
    ],  # noted: numbers, other names
    "text": [{"text": f"once {n} " * (1 + n % 5)} for n in range(40)],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / kept.FOLDER


def written(file: Path, rows: list[dict[str, Any]], start: str = "") -> Path:
    text = "".join(
        json.dumps(row, ensure_ascii=False) + "\n\n" * (n % 3 == 0) + "\n" for n, row in enumerate(rows)
    )
    file.write_text(start + text, encoding="utf-8", newline="")
    return file


def prepared(file: Path, streaming: bool, **changes: Any) -> PreparedRows:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    section = DataSection(
        task="instruct", train=str(file), streaming=streaming, **{"max_length": 400, **changes}
    )
    return prepare(section, get_task("instruct"), Reader(tokenizer), seed=3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("too_long", ["none", "parts", "cut", "drop"])
def test_streamed_rows_are_those_of_memory(form: str, too_long: str, tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", FORMS[form], start="\ufeff")
    memory = prepared(file, False)
    lengths = sorted(len(row) for row in memory.data.train)
    middle = {"max_length": lengths[len(lengths) // 2], "too_long": too_long}
    changes = {"none": {}, "parts": {"validation_rows": 5, "limit": 20}}.get(too_long, middle)
    memory = prepared(file, False, **changes)
    for _ in range(2):  # encoded, and found
        lazy = prepared(file, True, **changes)
        assert isinstance(lazy.data.train, stored.Stored)
        assert [*lazy.data.train] == memory.data.train
        assert list(lazy.data.train.lengths) == [len(row) for row in memory.data.train]
        assert [*lazy.data.validation] == [*memory.data.validation]
        assert (lazy.hashes, lazy.notes, lazy.form) == (memory.hashes, memory.notes, memory.form)
        assert (lazy.train_report, lazy.validation_report) == (memory.train_report, memory.validation_report)


def test_further_sources_are_streamed_beside_it(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", FORMS["alpaca"])
    also = {str(written(tmp_path / "more.jsonl", FORMS["text"])): 1.5}
    memory, lazy = prepared(file, False, also=also), prepared(file, True, also=also)
    assert [*lazy.data.train] == memory.data.train
    assert lazy.hashes == memory.hashes


def recipe_of(file: Path, run_dir: Path, streaming: bool) -> Recipe:
    data = {
        "task": "instruct",
        "train": str(file),
        "validation_rows": 6,
        "streaming": streaming,
        "limit": None,
    }
    return tiny_recipe(file.parent / "model", run_dir, data=data)


def test_a_run_is_the_same_and_goes_on_by_the_other_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llama_folder(tmp_path / "model")
    file = written(tmp_path / "rows.jsonl", FORMS["alpaca"][:20])
    whole = train.run(recipe_of(file, tmp_path / "whole", False), quiet=True)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3)
        with pytest.raises(Stopped):
            train.run(recipe_of(file, tmp_path / "parts", True), quiet=True)
    parts = train.run(recipe_of(file, tmp_path / "parts", False), resume=True, quiet=True)
    assert hashes(parts.run_dir / "last") == hashes(whole.run_dir / "last")
    assert losses(parts.run_dir) == losses(whole.run_dir)


def test_large_files_are_streamed_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "rows.jsonl", FORMS["text"])
    assert isinstance(sources.load_rows(str(file), "train").rows, list)
    monkeypatch.setattr(sources, "STREAMED_FROM", file.stat().st_size)
    found = sources.load_rows(str(file), "train")
    assert isinstance(found.rows, JsonLines)
    assert isinstance(sources.load_rows(str(file), "train", streaming=False).rows, list)
    assert found.rows[-1] == FORMS["text"][-1]
    assert found.subset([3, 1]).rows == [FORMS["text"][3], FORMS["text"][1]]


def test_bad_lines_are_told_as_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "a"}\n{"text": \n\n[1]\n{"text": "\0"}\n{"text": "\xff"}\n{"text": "b"}')
    told = []
    for streaming in (False, True):
        with pytest.raises(DataError) as caught:
            sources.load_rows(str(file), "train", streaming=streaming)
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "rows.jsonl:2" in told[0]
    assert "4 of 6 lines are bad" in told[0]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("rows.jsonl.gz", "unpack it first"),
        ("rows.jsonl.zst", "unpack it first"),
        ("rows.csv", "write one object a line"),
        ("rows.json", "write one object a line"),
        ("rows.parquet", "write one object a line"),
        ("arrow/state.json", "write one object a line"),
        ("owner/set", "write one object a line"),
        ("due_dates", "write one object a line"),
        ("gsm8k", "write one object a line"),
    ],
)
def test_what_is_read_as_a_whole_is_refused_before_it_is(
    name: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set larger than memory would not survive the reading; so nothing in these files is looked at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEUROADA_DATA", raising=False)
    if "." in name:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not read")
    if name.startswith("arrow"):  # as `datasets` saves a set
        (tmp_path / "arrow" / "dataset_info.json").write_text("{}")
        name = "arrow"
    with pytest.raises(DataError, match=rf"can only be read as a whole: data.streaming .*; {fix}"):
        sources.load_rows(name, "train", streaming=True)


def test_a_file_that_is_nowhere_is_said_to_be_so_when_streamed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such data set"):
        sources.load_rows(str(tmp_path / "rows.jsonl"), "train", streaming=True)


def test_what_cannot_be_streamed_is_refused_on_wish(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\na\n")
    (tmp_path / "list.jsonl").write_text('[{"text": "a"}]')
    for name in ("rows.csv", "list.jsonl"):
        with pytest.raises(DataError, match=r"can only be read as a whole"):
            sources.load_rows(str(tmp_path / name), "train", streaming=True)
        assert len(sources.load_rows(str(tmp_path / name), "train")) == 1


def test_a_file_that_changes_meanwhile_stops_the_run(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", FORMS["text"])
    rows = sources.load_rows(str(file), "train", streaming=True).rows
    with file.open("a") as more:
        more.write('{"text": "late"}\n')
    with pytest.raises(DataError, match="has changed since it was read"):
        rows[0]


def test_rows_outlive_the_cache_and_a_broken_file_is_made_again(tmp_path: Path, cache: Path) -> None:
    file = written(tmp_path / "rows.jsonl", FORMS["text"])
    first = prepared(file, True).data.train
    (there,) = cache.iterdir()
    whole = there.read_bytes()
    there.write_bytes(whole[:-5])
    again = prepared(file, True).data.train
    assert there.read_bytes() == whole
    there.unlink()
    assert [*again] == prepared(file, False).data.train
    assert isinstance(first, Lazy)


def test_no_room_for_tokens_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("no folder")
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "taken"))
    with pytest.raises(ResourceError, match=r"NEUROADA_CACHE"):
        prepared(written(tmp_path / "rows.jsonl", FORMS["text"]), True)


def test_memory_hardly_grows_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own memory at its peak: of each further row its place, where memory takes the row."""
    monkeypatch.setattr(encoding, "PART", 10)
    peaks: dict[tuple[int, bool], int] = {}
    for count, streaming in ((50, True), (50, True), (500, True), (50, False), (500, False)):
        file = tmp_path / f"{count}.jsonl"
        file.write_text('{"text": "once upon a time there was a small set of rows"}\n' * count)
        tracemalloc.start()
        rows = prepared(file, streaming).data.train
        peaks[count, streaming] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(rows) == count
    lazy, memory = (peaks[500, streaming] - peaks[50, streaming] for streaming in (True, False))
    assert lazy < memory / 5
    assert lazy < 450 * 200


def test_a_growing_tensor_is_plain_safetensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    with files.grown_tensors(tmp_path / "x.safetensors", "grown", torch.int32) as growing:
        for part in ([1, 2], [], [3]):
            growing.append(torch.tensor(part, dtype=torch.int32))
        growing.finish({"b": torch.arange(2.0)}, {"about": "x"})
    found = load_file(tmp_path / "x.safetensors")
    assert found["grown"].tolist() == [1, 2, 3]
    assert found["b"].tolist() == [0, 1]
    with pytest.raises(ResourceError), files.grown_tensors(tmp_path / "x.safetensors", "grown", torch.int32):
        raise OSError(28, os.strerror(28))
    assert os.listdir(tmp_path) == ["x.safetensors"]
