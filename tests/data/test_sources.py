"""Where rows are looked for, and what a user is told when they are nowhere."""

from __future__ import annotations

import gzip
import http.server
import json
import lzma
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuroada_cli.data import sources
from neuroada_cli.data.lazy import Lazy
from neuroada_cli.data.sources import load_rows, split_source, take
from neuroada_cli.errors import DataError
from neuroada_cli.training.rows import _said_of

ROWS = [{"instruction": f"q{n}", "answer": str(n)} for n in range(6)]


def write(file: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(lzma.compress(data) if file.suffix == ".xz" else data)
    return file


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUROADA_DATA", raising=False)
    monkeypatch.setenv("NEUROADA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_the_given_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "sets/boolq/test.jsonl.xz", ROWS[:1])
    write(tmp_path / "other/boolq/test.jsonl", ROWS[:2])
    write(tmp_path / "here/boolq/test.jsonl", ROWS[:3])
    assert len(load_rows("boolq", "test", tmp_path / "sets")) == 1
    monkeypatch.setenv("NEUROADA_DATA", str(tmp_path / "other"))
    assert len(load_rows("boolq", "test")) == 2
    assert len(load_rows("boolq", "test", tmp_path / "sets")) == 1
    monkeypatch.delenv("NEUROADA_DATA")
    assert len(load_rows("boolq", "test")) == 3


def test_a_source_is_a_file_a_folder_or_a_split_of_one(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl")
    assert load_rows(str(file), "train").source == str(file)
    assert load_rows(str(tmp_path / "mine"), "train").rows == ROWS
    write(tmp_path / "set/train.jsonl.xz")
    write(tmp_path / "set/clean.jsonl", ROWS[:2])
    assert load_rows(str(tmp_path / "set"), "train").rows == ROWS
    assert load_rows("set:clean", "train", tmp_path).rows == ROWS[:2]
    assert split_source("owner/name:config", "train") == ("owner/name:config", "train")
    assert split_source("http://host:80/x", "train") == ("http://host:80/x", "train")


def test_a_source_names_the_list_within_a_file_that_is_one_object(tmp_path: Path) -> None:
    (tmp_path / "two.json").write_text(json.dumps({"train": ROWS, "test": ROWS[:2]}))
    assert load_rows(f"{tmp_path}/two.json:test", "train").rows == ROWS[:2]
    assert load_rows(f"{tmp_path}/two.json:test", "validation", key="train").rows == ROWS[:2]
    assert load_rows(f"{tmp_path}/two.json", "validation", key="train").rows == ROWS
    with pytest.raises(DataError, match="several lists of rows") as failure:
        load_rows(f"{tmp_path}/two.json", "train")
    assert failure.value.fix == "name one: data.field: train, or two.json:train as the source"
    with pytest.raises(DataError, match="holds no rows under 'tset'"):
        load_rows(f"{tmp_path}/two.json:tset", "train")
    with pytest.raises(DataError, match="is not one JSON object with rows under 'test'"):
        load_rows(f"{write(tmp_path / 'rows.jsonl')}:test", "train")


def test_the_hash_is_of_the_rows_not_of_the_file(tmp_path: Path) -> None:
    plain, packed = write(tmp_path / "a.jsonl"), write(tmp_path / "a.jsonl.xz")
    hashes = {load_rows(str(f), "train").sha256 for f in (plain, packed)}
    assert len(hashes) == 1
    turned = [dict(reversed(row.items())) for row in ROWS]
    assert load_rows(str(write(tmp_path / "turned.jsonl", turned)), "train").sha256 in hashes
    for name, other in (("b", ROWS[:5]), ("c", ROWS[::-1])):
        assert load_rows(str(write(tmp_path / f"{name}.jsonl", other)), "train").sha256 not in hashes


def test_a_part_of_a_split_says_so(tmp_path: Path) -> None:
    write(tmp_path / "hellaswag/test_1000.jsonl")
    rows = load_rows("hellaswag", "test", tmp_path)
    assert rows.partial
    assert rows.label == "hellaswag/test_1000.jsonl"
    write(tmp_path / "hellaswag/test.jsonl")
    assert not load_rows("hellaswag", "test", tmp_path).partial


def test_parts_of_a_split_are_not_taken_for_it(tmp_path: Path) -> None:
    """One part is told, several are refused: which of them is the whole cannot be known."""
    write(tmp_path / "set/train_10.jsonl")
    found = load_rows("set", "train", tmp_path)
    assert found.partial
    assert list(_said_of(found, found)) == ["set/train_10.jsonl is by its name only a part of the split"]
    for name in ("train_1.jsonl", "train_2.jsonl.gz"):
        (tmp_path / "set" / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    with pytest.raises(
        DataError, match=r"3 parts of train \(train_1.jsonl, train_2.jsonl.gz, train_10.jsonl\)"
    ):
        load_rows("set", "train", tmp_path)
    write(tmp_path / "set/train.jsonl")
    whole = load_rows("set", "train", tmp_path)
    assert (whole.partial, _said_of(whole)) == (False, [])


def test_a_part_of_another_split_is_none_of_this_one(tmp_path: Path) -> None:
    write(tmp_path / "set/train_filtered_10.jsonl")
    with pytest.raises(DataError, match="has no split train"):
        load_rows("set", "train", tmp_path)


TAKEN = [
    ("set.jsonl", "set.json"), ("set.jsonl", "set.jsonl.gz"), ("set.jsonl", "set/train.jsonl"),
    ("set/train.jsonl", "set/train.json"), ("set/train.jsonl", "set/train.csv"),
]  # fmt: skip


@pytest.mark.parametrize(("taken", "other"), TAKEN)
def test_what_would_have_been_taken_otherwise_is_said(tmp_path: Path, taken: str, other: str) -> None:
    write(tmp_path / taken)
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_bytes(b"what it holds does not matter")
    found = load_rows("set", "train", tmp_path)
    assert (found.source, len(found.remarks)) == (str(tmp_path / taken), 1)
    assert f": taken, although there is {'/'.join((tmp_path / other).parts[-2:])}, too" in found.remarks[0]
    assert load_rows(str(tmp_path / taken), "train").remarks == []


def test_parts_remember_lines_and_numbers(tmp_path: Path) -> None:
    rows = load_rows(str(write(tmp_path / "a.jsonl")), "train")
    part = rows.subset([1, 3, 5]).subset([0, 2])
    assert part.rows == [ROWS[1], ROWS[5]]
    assert (part.lines, part.numbers, part.sha256) == ([2, 6], [1, 5], rows.sha256)


def test_a_limit_is_a_seeded_choice_in_order(tmp_path: Path) -> None:
    chosen = take(range(1000), 50, seed=1)
    assert chosen == sorted(set(chosen)) == take(range(1000), 50, seed=1) != take(range(1000), 50, seed=2)
    assert take(range(5), 9, 0) == take(range(5), None, 0) == list(range(5))


def test_a_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path / "set/train.jsonl")
    with pytest.raises(DataError, match=r"has no split test \(it holds train.jsonl\)"):
        load_rows("set", "test", tmp_path)


def test_missing_sets_and_folders(tmp_path: Path) -> None:
    looked = r"no such data set \(looked at .*here/nothing, nothing\).*--data-dir"
    with pytest.raises(DataError, match=looked):
        load_rows("nothing", "train", tmp_path / "here")
    with pytest.raises(DataError, match="no such folder"):
        load_rows("boolq", "test", tmp_path / "absent")
    for odd in ("", ".", "/", "~nobody/x", "a" * 5000, "x\0y"):
        with pytest.raises(DataError):
            load_rows(odd, "train")


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text("\n\n")
    with pytest.raises(DataError, match="holds no rows"):
        load_rows(str(file), "train")


def test_a_folder_that_happens_to_have_the_name_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "here/due_dates").mkdir()
    assert len(load_rows("due_dates", "validation")) == sources.GENERATED_ROWS["validation"]
    with pytest.raises(DataError, match="has no split nonsense"):
        load_rows("due_dates:nonsense", "train")


@pytest.mark.parametrize("name", sorted(sources.GENERATED))
def test_what_is_done_to_made_rows_does_not_show_in_those_asked_for_next(name: str) -> None:
    first = load_rows(name, "validation")
    before = first.sha256
    first.rows[0].clear()
    assert load_rows(name, "validation").sha256 == before
    assert load_rows(name, "validation").rows[0]


@pytest.mark.parametrize("source", ["boolq", "glue_rte", "some/set", "http://127.0.0.1:9/x.json"])
def test_without_a_network_the_answer_is_quick_and_helpful(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The addresses point to a port of this machine where nothing listens."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sources.KNOWN_SETS, "boolq", "http://127.0.0.1:9/boolq/{split}.json")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError, match=r"not answer.*--data-dir"):
        load_rows(source, "test")


def test_nobody_is_asked_where_the_hub_is_set_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda *_: pytest.fail("something is connected to"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a host is looked up"))
    with pytest.raises(DataError, match=r"x.json is not fetched, since HF_HUB_OFFLINE is set\).*--data-dir"):
        load_rows("http://example.org/x.json", "test")


def test_a_set_of_training_rows_has_no_other_split() -> None:
    """Else the training rows would be taken for a validation set."""
    with pytest.raises(DataError, match="training rows only"):
        load_rows("commonsense_15k", "validation")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    write(folder / "rows.jsonl")
    (folder / "set").mkdir()
    (folder / "set/test.json").write_text(json.dumps([{"answer": 1}, {"answer": "A"}]))
    (folder / "bad.jsonl").write_text('{"a": 1}\n{"a": \n')

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_urls_are_fetched_and_read_as_strictly(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert load_rows(f"{server}/rows.jsonl", "train").rows == ROWS
    monkeypatch.setitem(sources.KNOWN_SETS, "mixed", f"{server}/set/{{split}}.json")
    mixed = load_rows("mixed", "test")  # numbers and letters in one column: Arrow would refuse them
    assert [row["answer"] for row in mixed.rows] == [1, "A"]
    assert mixed.source == f"{server}/set/test.json"
    with pytest.raises(DataError, match=r"/bad\.jsonl:2: not valid JSON"):
        load_rows(f"{server}/bad.jsonl", "train")
    with pytest.raises(DataError, match="cannot be fetched"):
        load_rows(f"{server}/absent.jsonl", "train")
    assert len(list((tmp_path / "cache/data").iterdir())) == 3, "the failed one left nothing"


def test_what_was_fetched_is_kept(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert len(load_rows(f"{server}/rows.jsonl", "train")) == 6
    (tmp_path / "served/rows.jsonl").unlink()
    assert len(load_rows(f"{server}/rows.jsonl", "train")) == 6


def test_a_fetched_file_of_lines_is_streamed_too(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(sources.KNOWN_SETS, "lines", f"{server}/rows.jsonl")
    in_memory = load_rows(f"{server}/rows.jsonl", "train", streaming=False)
    for source in (f"{server}/rows.jsonl", "lines"):
        streamed = load_rows(source, "train", streaming=True)
        assert isinstance(streamed.rows, Lazy)
        assert not isinstance(in_memory.rows, Lazy)
        assert (list(streamed.rows), streamed.source) == (ROWS, f"{server}/rows.jsonl")
    with pytest.raises(DataError, match="only be read as a whole"):
        load_rows(f"{server}/absent.json", "train", streaming=True)
    with pytest.raises(DataError, match="only be read as a whole"):
        load_rows("owner/rows.jsonl", "train", streaming=True)  # a hub id, whatever its name ends in
    assert len(list((tmp_path / "cache/data").iterdir())) == 1, "nothing is fetched to be refused"


PUBLISHED = {
    "boolq": 3270, "piqa": 1838, "social_i_qa": 1954, "winogrande": 1267, "ARC-Easy": 2376,
    "ARC-Challenge": 1172, "openbookqa": 500, "MultiArith": 600, "gsm8k": 1319, "AddSub": 395, "AQuA": 254,
    "SingleEq": 508, "SVAMP": 1000, "mawps": 238,
}  # fmt: skip


def test_the_real_test_sets_are_complete(shared: Path) -> None:
    found = {name: len(load_rows(name, "test", shared / "data")) for name in PUBLISHED}
    assert found == PUBLISHED
