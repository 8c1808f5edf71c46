"""Rows as people have them in files: each form gives the rows that were put in, or says what is wrong."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroada_cli.data.finding import find_file
from neuroada_cli.data.formats import row_bytes
from neuroada_cli.data.reading import read_file
from neuroada_cli.data.sources import load_rows
from neuroada_cli.errors import DataError

ROWS = [{"question": f'wie "viel"?\n{n}, 0{n}; \t\u2028', "answer": str(n)} for n in range(3)]


def table(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["question", "answer"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def zstd(data: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


LINES = "\n".join(json.dumps(row) for row in ROWS).encode()
FILES = {
    "rows.csv": table(","),
    "semicolons.csv": table(";"),
    "rows.tsv": table("\t"),
    "rows.csv.gz": gzip.compress(table(",")),
    "rows.jsonl.gz": gzip.compress(LINES),
    "rows.jsonl.zst": zstd(LINES),
    "bom.csv": b"\xef\xbb\xbf" + table(","),
    "object.json": json.dumps({"version": 2, "data": ROWS}, indent=1).encode(),
    "line.json": json.dumps({"version": 2, "data": ROWS}).encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_the_rows_are_those_that_were_put_in(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(FILES[name])
    assert read_file(file)[0] == ROWS


def test_lines_of_a_table_are_where_rows_begin(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'text\n"a\nb"\nc\n\nd\n')
    assert read_file(file)[:2] == ([{"text": "a\nb"}, {"text": "c"}, {"text": "d"}], [2, 4, 6])


def test_a_text_is_a_row_a_line(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("one\n\n two \n")
    assert read_file(tmp_path / "rows.txt")[:2] == ([{"text": "one"}, {"text": " two "}], [1, 3])


@given(
    st.lists(st.text(st.sampled_from('ab",;\t \f\x1c\x85\u2028\n')).map(str.strip), min_size=1, max_size=4),
    st.sampled_from(["\n", "\r\n"]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_of_text_are_those_of_json(tmp_path: Path, texts: list[str], end: str) -> None:
    """Only a line feed ends a line: what else `str.splitlines` cuts at is text."""
    texts = [line for text in texts for line in text.split("\n") if line.strip()]
    (tmp_path / "rows.txt").write_bytes(end.join(texts).encode())
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert read_file(tmp_path / "rows.txt") == read_file(tmp_path / "rows.jsonl")


NAME = st.text(st.sampled_from('ab",;\t\n'), min_size=1, max_size=4)


@given(
    names=st.lists(NAME, min_size=2, max_size=3, unique=True),
    values=st.lists(st.lists(NAME, min_size=3, max_size=3), min_size=1, max_size=4),
    mark=st.sampled_from([",", ";", "\t"]),
    all_quoted=st.booleans(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_quoted_separators_part_nothing(
    tmp_path: Path, names: list[str], values: list[list[str]], mark: str, all_quoted: bool
) -> None:
    """Values that hold any mark in quotes (as spreadsheets write them, or all) are those that were put in."""
    rows = [dict(zip(names, each, strict=False)) for each in values]
    lines = [names, *([row[name] for name in names] for row in rows)]
    (tmp_path / "rows.csv").write_bytes(
        "\r\n".join(mark.join(_quoted(each, all_quoted) for each in line) for line in lines).encode()
    )
    assert read_file(tmp_path / "rows.csv").rows == rows


def _quoted(value: str, always: bool) -> str:
    doubled = value.replace('"', '""')
    return f'"{doubled}"' if always or set(value) & set('",;\t\n') else value


MARKED = {
    "quoted.csv": (b'"id";"prompt, full";"completion"\n1;"a, b";c\n', ["id", "prompt, full", "completion"]),
    "half.csv": (b'id;"prompt, full";completion\n1;"a, b";c\n', ["id", "prompt, full", "completion"]),
    "rows decide.csv": (
        b"id;prompt, full;completion\n1;a;c\n2;b, d;e\n",
        ["id", "prompt, full", "completion"],
    ),
    "commas.csv": (b"id,a;b\n1,2\n3,4;5\n", ["id", "a;b"]),
    "inches.csv": (b'size,name\n5" pipe,a\n6",b\n', ["size", "name"]),
    "one.csv": (b"text\na\n", ["text"]),
}


@pytest.mark.parametrize("name", MARKED)
def test_what_parts_columns_is_what_all_rows_agree_on(tmp_path: Path, name: str) -> None:
    data, names = MARKED[name]
    (tmp_path / name).write_bytes(data)
    assert list(read_file(tmp_path / name).rows[0]) == names


def test_an_object_with_messages_is_one_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for indent in (None, 2):
        (tmp_path / "rows.json").write_text(json.dumps(row, indent=indent))
        assert read_file(tmp_path / "rows.json")[0] == [row]


INSIDE = {"version": "1", "data": [{"text": "a"}, {"text": "b"}], "authors": ["x"]}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
@pytest.mark.parametrize("key", [None, "data"])
def test_the_rows_of_one_object_and_where_they_lay(
    tmp_path: Path, name: str, indent: int | None, key: str | None
) -> None:
    data = json.dumps(INSIDE, indent=indent).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_file(tmp_path / name, key)[:3] == (INSIDE["data"], None, "data")


def test_one_of_several_lists_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"train": [{"a": 1}], "test": [{"a": 2}]}))
    assert read_file(tmp_path / "rows.json", "test").rows == [{"a": 2}]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("key", [None, "meta.of.rows"])
def test_rows_under_a_key_within_a_key(tmp_path: Path, indent: int | None, key: str | None) -> None:
    """Names may hold full stops themselves."""
    (tmp_path / "rows.json").write_text(json.dumps({"v": 1, "meta": {"of.rows": [{"a": 1}]}}, indent=indent))
    assert read_file(tmp_path / "rows.json", key)[:3] == ([{"a": 1}], None, "meta.of.rows")


ROWS_THEMSELVES: list[dict[str, object]] = [
    {"instruction": "a", "output": "b", "examples": [{"x": 1}]},
    {"question": "a", "answer": "b", "sources": [{"x": 1}]},
    {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}]},
    {"prompt": [{"role": "user", "content": "a"}], "completion": "b"},
    {"text": "a", "meta": {"n": 1}},
]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("row", ROWS_THEMSELVES)
def test_one_object_that_is_a_row(tmp_path: Path, row: dict[str, object], indent: int | None) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(row, indent=indent))
    assert read_file(tmp_path / "rows.json").rows == [row]


def test_one_object_over_several_lines_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(INSIDE, indent=1))
    assert read_file(tmp_path / "rows.jsonl").rows == INSIDE["data"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_a_key_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"a": 1}\n{"a": 2}\n' if name != "rows.json" else '{"a": [{"x": 1}]}')
    with pytest.raises(DataError, match="under 'data'") as failure:
        read_file(tmp_path / name, "data")
    assert failure.value.where == str(tmp_path / name)


BAD = {
    "columns.json": (b'{"a": ["x", "y"], "b": ["z", "w"]}', "columns.json", "whole columns (a, b)"),
    "pandas.json": (b'{"a": {"0": 1, "1": 2},\n"b": {"0": 3, "1": 4}}', "pandas.json", "whole columns"),
    "two.json": (b'{\n"a": [{"x": 1}],\n"b": [{"x": 2}]}', "two.json", "several lists of rows (a, b)"),
    "rows.json": (
        b'{"0": {"prompt": "a", "output": "b"}, "1": {"prompt": "c", "output": "d"}}',
        "rows.json",
        "rows, each under a name of its own (0, 1)",
    ),
    "asked.json": (b'{"prompt": ["x", "y"], "completion": ["z", "w"]}', "asked.json", "whole columns"),
    "frame.json": (
        b'{"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}}',
        "frame.json",
        "whole columns (prompt, completion)",
    ),
    "empty.json": (b'{"v": 1, "data": []}', "empty.json", "its list 'data' holds nothing"),
    "texts.json": (b'{"v": 1, "data": ["a", "b"]}', "texts.json", "its list 'data' holds no objects alone"),
    "depths.json": (b'{"a": {"b": [{"x": 1}]}, "c": [{"x": 1}]}', "depths.json", "lists of rows (a.b, c)"),
    "behind.json": (b'{\n"a": 1},\n', "behind.json:2", "not valid JSON: Extra data"),
    "wide.json": ('{"a": "é"}'.encode("utf-16"), "wide.json:1", "not UTF-8"),
    "spread.jsonl": (b'{\n"a": 1}\n{\n"a": 2}', "spread.jsonl:3", "several objects"),
    "null.json": (b"null", "null.json:1", "is null, not an object"),
    "cut.json": (b'{\n"a": [\n{"x": 1},\n', "cut.json:", "not valid JSON"),
    "objects.json": (b'{\n"a": 1}\n{\n"a": 2}', "objects.json:3", "several objects"),
    "ragged.csv": (b"a,b\n1,2\n1,2,3\n4\n", "ragged.csv:3", "(2 of 3 rows)"),
    "two ways.csv": (
        b"id;prompt, full\n1;a, b\n",
        "two ways.csv:1",
        "2 parted by commas or 2 parted by semi",
    ),
    "ragged;.csv": (b"a;b\n1;2,3;4\n", "ragged;.csv:2", "(2, parted by semicolons)"),
    "open.csv": (b'a,b\n1,"2\n', "open.csv:2", "not valid CSV"),
    "twice.csv": (b"a,a\n1,2\n", "twice.csv:1", "twice"),
    "latin.csv": (b"a\n1\n\xff\n", "latin.csv:3", "not UTF-8"),
    "nul.txt": (b"a\n\0\n", "nul.txt:2", "NUL"),
    "cut.jsonl.gz": (gzip.compress(LINES)[:-12], "cut.jsonl.gz", "not a whole .gz file"),
    "no.jsonl.gz": (LINES, "no.jsonl.gz", "not a whole .gz file"),
    "cut.jsonl.zst": (zstd(LINES)[:-6], "cut.jsonl.zst", "not a whole .zst file"),
    "no.arrow": (LINES, "no.arrow", "not an Arrow file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, name: str) -> None:
    data, place, what = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as failure:
        read_file(tmp_path / name)
    assert place in str(failure.value.where)
    assert what in failure.value.what


def test_folders_that_datasets_saved(tmp_path: Path) -> None:
    """One set, or a set of splits; chosen and shuffled rows; days as the text that ISO has for them."""
    import datasets

    day = datetime.datetime(2026, 2, 28, 23, 59)
    rows = [{"question": str(n), "answer": "a", "day": day, "many": [day]} for n in range(6)]
    whole = datasets.Dataset.from_list(rows)
    whole.select([5, 0, 3]).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=whole, test=whole.select([2])).save_to_disk(str(tmp_path / "both"))
    found = load_rows(str(tmp_path / "one"), "train").rows
    assert [row["question"] for row in found] == ["5", "0", "3"]
    assert found[0]["day"] == "2026-02-28T23:59:00"
    assert found[0]["many"] == ["2026-02-28T23:59:00"]
    assert len(load_rows(str(tmp_path / "both"), "train")) == 6
    assert [row["question"] for row in load_rows(str(tmp_path / "both"), "test").rows] == ["2"]


def test_a_folder_of_texts_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torch\n")
    assert find_file(tmp_path, "train") is None


def test_a_row_is_told_from_others_by_its_content_alone() -> None:
    row = {"a": "é", "picture": b"one", "more": {"x": 1, "y": [1, b"z"]}}
    assert row_bytes(row) == row_bytes({"more": {"y": [1, b"z"], "x": 1}, "picture": b"one", "a": "é"})
    others = [row | {"picture": b"two"}, row | {"a": "e"}, row | {"more": {"x": 1, "y": [1, b"!"]}}]
    assert len({row_bytes(each) for each in (row, *others)}) == 4
