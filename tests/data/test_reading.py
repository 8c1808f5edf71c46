"""Local files: read to the last row, or refused with file, line and count."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from neuroada_cli.data.reading import read_file, streamed
from neuroada_cli.errors import DataError

GOOD = b'{"a": 1}\n'
BAD_LINES = {
    b'{"a": ': "not valid JSON",
    b'{"a": 1}}': "not valid JSON",
    b'{"a": NaN}': "NaN is not JSON",
    b'{"a": 1e999}': "too large a number",
    b'{"a": 1, "a": 2}': "twice",
    b'{"a": "\xff"}': "not UTF-8",
    b'{"a": "\0"}': "NUL",
    b'{"a": "\\ud800"}': "surrogate",
    b"[1]": "is a list, not an object",
    b'"text"': "is text, not an object",
    b"{" * 100_000: "not valid JSON",
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": "not valid JSON",
    b'{"a": ' + b"1" * 5000 + b"}": "not valid JSON",
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named_and_all_are_counted(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD + line)
    with pytest.raises(DataError) as failure:
        read_file(file)
    assert failure.value.where == f"{file}:3"
    assert message in failure.value.what
    assert "(2 of 4 lines are bad)" in failure.value.what


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.xz", "rows.json.xz", "rows.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = [{"question": "wie viel? 1\u20282", "answer": str(n)} for n in range(5)]
    file = tmp_path / name
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        data = (json.dumps(rows, indent=2) if ".json." in name + "." else lines).encode()
        file.write_bytes(lzma.compress(data) if name.endswith(".xz") else data)
    found, lines_of, *_ = read_file(file)
    assert found == rows
    assert lines_of == (None if lines_of is None else [1, 2, 3, 4, 5])


def test_a_byte_order_mark_and_windows_lines_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}\r\n\r\n{"a": 2}')
    assert read_file(file)[:2] == ([{"a": "😀"}, {"a": 2}], [1, 3])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"a": 1},\n {"a": }]', r"a\.json:2: not valid JSON"),
        ("a.json", b'[{"a": 1},\n\n {"a": "\xff"}]', r"a\.json:3: not UTF-8"),
        ("a.json", b'[{"a": 1}, 7]', "row 1 is a number, not an object"),
        ("a.json", b'[{"a": "\\udfff"}]', "surrogate"),
        ("a.jsonl.xz", b"not packed", "not a whole .xz"),
        ("a.jsonl.xz", lzma.compress(GOOD * 99)[:-20], "not a whole .xz"),
        ("a.parquet", b"PAR1 no", "not a parquet file"),
    ],
)
def test_other_broken_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_file(tmp_path / name)


MUTATED = st.builds(
    lambda rows, at, junk, cut: (rows[:at] + junk + rows[at:])[: len(rows) + len(junk) - cut],
    st.just(GOOD * 4 + '{"b": "ü"}\n'.encode()),
    st.integers(0, 47),
    st.binary(max_size=4),
    st.integers(0, 12),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(MUTATED, st.binary(max_size=80)))
@example(b"[")
@example(b"[]")
@example(b"\xef\xbb\xbf")
def test_whatever_the_bytes_rows_or_one_clear_error(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "fuzz.jsonl"
    file.write_bytes(data)
    try:
        rows, lines, *_ = read_file(file)
    except DataError as error:
        named = str(file) in error.line()
        rows, lines = [], None
    else:
        named = True
    assert named
    assert all(isinstance(row, dict) for row in rows)
    assert lines is None or len(lines) == len(rows)
    json.dumps(rows, ensure_ascii=False).encode()  # what was read can be written


@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n", "\ufeff\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_that_stay_on_the_disk_have_the_places_of_those_in_memory(
    start: str, end: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    texts = [json.dumps({"text": "é" * number}, ensure_ascii=False) for number in range(9)]
    lines = [text + end * (1 + number % 3) for number, text in enumerate(texts)]
    file.write_text(start + "".join(lines), encoding="utf-8", newline="")
    whole, found = read_file(file), streamed(file, str(file))
    assert found is not None
    assert list(found.lines or ()) == list(whole.lines or ())
    assert [*found.rows] == whole.rows == [found.rows[place] for place in range(9)]
