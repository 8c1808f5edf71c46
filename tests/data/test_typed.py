"""Typed tables: whatever carries the rows (JSON, parquet, Arrow, the hub), the same tokens are learnt."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from templates_table import QWEN3, chat_tokenizer

from neuroada_cli.data.batch import Example
from neuroada_cli.data.sources import Rows, load_rows
from neuroada_cli.data.typed import json_lines_of
from neuroada_cli.errors import DataError
from neuroada_cli.recipe.schema import DataSection
from neuroada_cli.tasks import instruct
from neuroada_cli.tasks.classes import labels_of
from neuroada_cli.tasks.image_text import talk_of
from neuroada_cli.tasks.notes import Notes
from neuroada_cli.tasks.registry import TASKS
from neuroada_cli.tasks.task import PROTOCOLS, examples_of

TOLD = (
    QWEN3 + "{% if lang is defined %}[{{ lang }}]{% endif %}{% if style is defined %}[{{ style }}]{% endif %}"
)


def calling(name: str, key: str, value: object, **more: Any) -> dict[str, Any]:
    """A row in which a tool of its own is called, with arguments that no other has."""
    call = {"type": "function", "function": {"name": name, "arguments": {key: value}}}
    schema = {"type": "object", "properties": {key: {"type": "string"}}}
    return {
        "messages": [
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
        "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}],
        **more,
    }


def talk(*messages: dict[str, Any], said: Any = "So.", **more: Any) -> dict[str, Any]:
    return {"messages": [*messages, {"role": "assistant", "content": said}], **more}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


# what no row needs to say to be understood, and every object of a table is given
SETS: dict[str, list[dict[str, Any]]] = {
    "tools": [calling("weather", "city", "Paris"), calling("clock", "zone", "UTC")],
    "whole arguments of another": [
        calling("weather", "at", {"city": "Paris"}),
        calling("clock", "at", {"zone": {"name": "UTC"}}),
    ],
    "template's values": [
        calling("weather", "city", "Paris", chat_template_kwargs={"lang": "en"}),
        calling("clock", "zone", "UTC", chat_template_kwargs={"style": "long"}),
    ],
    "names and thoughts": [
        talk({"role": "user", "content": "a", "name": "Ann"}),
        talk({"role": "user", "content": "b"}, system="Be brief."),
    ],
    "parts": [
        talk({"role": "user", "content": parts("a", "b")}, said=parts("So.")),
        talk(
            {"role": "user", "content": [*parts("c"), {"type": "text", "text": "d", "cache": {"ttl": "5m"}}]},
            said=parts("So.", "And so."),
        ),
    ],
    "functions": [
        {"messages": row["messages"], "functions": [tool["function"] for tool in row["tools"]]}
        for row in (calling("weather", "city", "Paris"), calling("clock", "zone", "UTC"))
    ],
    "prompts and completions": [
        {"prompt": [{"role": "user", "content": "a"}], "completion": row["messages"][1:]}
        for row in (calling("weather", "city", "Paris"), calling("clock", "zone", "UTC"))
    ],
    "histories": [
        {"instruction": "a", "output": "b", "history": [["c", "d"]]},
        {"instruction": "e", "output": "f", "input": "g"},
    ],
}  # fmt: skip


def to_jsonl(rows: list[dict[str, Any]], folder: Path) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def to_parquet(rows: list[dict[str, Any]], folder: Path) -> str:
    pa.parquet.write_table(pa.Table.from_pylist(_all_columns(rows)), folder / "rows.parquet")
    return str(folder / "rows.parquet")


def to_arrow(rows: list[dict[str, Any]], folder: Path) -> str:
    table = pa.Table.from_pylist(_all_columns(rows))
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as out:
        out.write_table(table)
    return str(folder / "rows.arrow")


def to_saved(rows: list[dict[str, Any]], folder: Path) -> str:
    import datasets

    datasets.Dataset.from_list(_all_columns(rows)).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def to_saved_of_json(rows: list[dict[str, Any]], folder: Path) -> str:
    """`datasets` keeps objects of JSON as text."""
    import datasets

    found = datasets.load_dataset("json", data_files=to_jsonl(rows, folder), split="train")
    found.save_to_disk(str(folder / "made of JSON"))
    return str(folder / "made of JSON")


def to_hub(rows: list[dict[str, Any]], folder: Path) -> str:
    (folder / "own/set").mkdir(parents=True)
    pa.parquet.write_table(pa.Table.from_pylist(_all_columns(rows)), folder / "own/set/train.parquet")
    return "own/set"


def _all_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


CARRIERS = {
    "parquet": to_parquet, "arrow": to_arrow, "saved": to_saved, "saved of JSON": to_saved_of_json,
    "hub": to_hub,
}  # fmt: skip
Carrier = Callable[[list[dict[str, Any]], Path], str]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("NEUROADA_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def learnt(rows: Rows, **settings: Any) -> list[Example]:
    section = DataSection(task="instruct", **settings)
    habits = instruct.habits_of(section, PROTOCOLS["reft"], Notes())
    task = instruct.shaped(TASKS["instruct"], rows, habits, chat_tokenizer("bytes", TOLD))
    return list(examples_of(task, rows.rows, "reft", rows.source))


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=list(CARRIERS))
@pytest.mark.parametrize("rows", SETS.values(), ids=list(SETS))
def test_what_is_learnt_does_not_depend_on_what_carries_the_rows(
    tmp_path: Path, rows: list[dict[str, Any]], carrier: Carrier
) -> None:
    settings = {"format": "chat", "chat_template_kwargs": {"style": "short"}}
    wanted = learnt(load_rows(to_jsonl(rows, tmp_path), "train"), **settings)
    assert learnt(load_rows(carrier(rows, tmp_path), "train"), **settings) == wanted


def test_what_was_left_out_is_said_once_with_its_rows(tmp_path: Path) -> None:
    rows = [*SETS["tools"], calling("clock", "zone", "UTC")]
    found = load_rows(to_parquet(rows, tmp_path), "train")
    assert len(found.remarks) == 1
    for part in (
        "rows.parquet: a typed table", "messages.tool_calls.function.arguments.zone", "(", ": 3 rows)",
        "tools.function.parameters.properties.city",
    ):  # fmt: skip
        assert part in found.remarks[0]
    plain = [talk({"role": "user", "content": "a", "name": "Ann"}), talk({"role": "user", "content": "b"})]
    assert load_rows(to_parquet(plain, tmp_path), "train").remarks == []


def test_nulls_that_somebody_wrote_stay(tmp_path: Path) -> None:
    """In JSON, in maps, in lists, and as columns."""
    row = calling("weather", "city", None)
    assert '"arguments": {"city": null}' in learnt(load_rows(to_jsonl([row], tmp_path), "train"))[0].target
    kind = pa.schema(
        [("m", pa.map_(pa.string(), pa.string())), ("l", pa.list_(pa.string())), ("n", pa.string())]
    )
    rows = [{"m": {"a": None}, "l": [None, "x"], "n": None}, {"m": {}, "l": [], "n": "y"}]
    pa.parquet.write_table(pa.Table.from_pylist(rows, kind), tmp_path / "rows.parquet")
    assert load_rows("rows.parquet", "train").rows == rows


def test_a_map_is_an_object(tmp_path: Path) -> None:
    rows = SETS["tools"]
    function = pa.struct([("name", pa.string()), ("arguments", pa.map_(pa.string(), pa.string()))])
    call = pa.struct([("type", pa.string()), ("function", function)])
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(call))])
    properties = pa.map_(pa.string(), pa.map_(pa.string(), pa.string()))
    parameters = pa.struct([("type", pa.string()), ("properties", properties)])
    tool = pa.struct(
        [("type", pa.string()), ("function", pa.struct([("name", pa.string()), ("parameters", parameters)]))]
    )
    kind = pa.schema([("messages", pa.list_(message)), ("tools", pa.list_(tool))])
    pa.parquet.write_table(pa.Table.from_pylist(rows, kind), tmp_path / "rows.parquet")
    found = load_rows("rows.parquet", "train")
    assert learnt(found) == learnt(load_rows(to_jsonl(rows, tmp_path), "train"))
    assert found.remarks == []


@pytest.mark.parametrize(("key", "kind"), [("a", pa.string()), (1, pa.int64())])
def test_a_map_that_has_a_key_twice_is_refused(tmp_path: Path, key: object, kind: Any) -> None:
    table = pa.table({"m": pa.array([[], [(key, "x"), (key, "y")]], pa.map_(kind, pa.string()))})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=rf"rows.parquet, row 1: the map 'm' has the key '{key}' twice"):
        load_rows("rows.parquet", "train")


def test_a_null_for_a_template_leaves_it_to_the_recipe(tmp_path: Path) -> None:
    rows = [talk({"role": "user", "content": "a"}, chat_template_kwargs={"lang": "en", "style": None})]
    found = learnt(load_rows(to_jsonl(rows, tmp_path), "train"), chat_template_kwargs={"style": "short"})
    assert "[en][short]" in found[0].prompt + found[0].target


def test_rows_written_as_lines_are_the_same_rows(tmp_path: Path) -> None:
    """What a set larger than memory is streamed from."""
    rows = [*SETS["template's values"]] * 700
    source = to_parquet(rows, tmp_path)
    (tmp_path / "lines.jsonl").write_text("\n".join(json_lines_of(source)))
    whole, streamed = load_rows(source, "train"), load_rows("lines.jsonl", "train", streaming=True)
    assert (list(streamed.rows), streamed.sha256) == (whole.rows, whole.sha256)
    pa.parquet.write_table(pa.table({"image": [b"a", b"\xff"]}), tmp_path / "pictures.parquet")
    with pytest.raises(DataError, match=r"pictures.parquet, row 0: cannot be written .*image is binary"):
        list(json_lines_of(tmp_path / "pictures.parquet"))
    (tmp_path / "no.parquet").write_text("no")
    with pytest.raises(DataError, match="is not a parquet file"):
        list(json_lines_of(tmp_path / "no.parquet"))


BINARY = [pa.binary(), pa.large_binary(), pa.binary(5), pa.dictionary(pa.int32(), pa.binary())]


@pytest.mark.parametrize("kind", BINARY, ids=str)
def test_binary_columns_are_text(tmp_path: Path, kind: Any) -> None:
    texts = [b"hello", "wör!".encode()]
    pa.parquet.write_table(pa.table({"text": pa.array(texts, kind)}), tmp_path / "rows.parquet")
    found = load_rows("rows.parquet", "train")
    assert learnt(found) == learnt(Rows([{"text": "hello"}, {"text": "wör!"}], found.source, ""))
    assert found.remarks == [f"{found.label}: binary columns are read as UTF-8 text (text: 2 rows)"]


def test_binary_text_within_messages(tmp_path: Path) -> None:
    rows = [talk({"role": "user", "content": "wör"})]
    message = pa.struct([("role", pa.binary()), ("content", pa.binary())])
    binary = [{"messages": [{k: v.encode() for k, v in each.items()} for each in rows[0]["messages"]]}]
    table = pa.Table.from_pylist(binary, pa.schema([("messages", pa.list_(message))]))
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    assert learnt(load_rows("rows.parquet", "train")) == learnt(load_rows(to_jsonl(rows, tmp_path), "train"))


NO_TEXT: dict[str, tuple[Any, str]] = {
    "latin": (pa.array([b"a", b"\xe9"]), "row 1: cannot be used: text is binary, and no UTF-8 text"),
    "NUL": (pa.array([b"a", b"b\0"]), "row 1: cannot be used: text is binary, and no UTF-8 text"),
    "spans": (pa.array([None, datetime.timedelta(hours=1)]), "row 1: .*text is a span of time"),
    "spans in lists": (pa.array([[], [datetime.timedelta(hours=1)]]), "row 1: .*text holds what is a span"),
    "no number": (pa.array([1.0, float("nan")]), "row 1: .*text is nan, which is no number that JSON has"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_no_text_is_refused_with_its_row(tmp_path: Path, name: str) -> None:
    column, what = NO_TEXT[name]
    pa.parquet.write_table(pa.table({"text": column, "label": column}), tmp_path / "rows.parquet")
    rows = load_rows("rows.parquet", "train")
    with pytest.raises(DataError) as failure:
        learnt(Rows([{"text": "a"}, rows.rows[1]], rows.source, ""))
    assert re.search(what, str(failure.value))
    pa.parquet.write_table(pa.table({"text": ["a"], "label": column[1:]}), tmp_path / "rows.parquet")
    section = DataSection(task="text_classes", train="rows.parquet")
    with pytest.raises(DataError, match=r"rows.parquet, row 0: cannot be used: label"):
        labels_of(section)


def test_labels_may_be_binary(tmp_path: Path) -> None:
    table = pa.table({"text": [b"a", b"b"], "label": [b"good", b"bad"]})
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    assert labels_of(DataSection(task="text_classes", train="rows.parquet")) == ["bad", "good"]


def test_bytes_of_pictures_stay_bytes(tmp_path: Path) -> None:
    """Also where they happen to be text."""
    data, struct = b"GIF89a", {"bytes": b"GIF89a", "path": None}
    row = {"image": data, "images": [data], "img": struct, "photo": struct}
    pa.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    found = load_rows("rows.parquet", "train")
    assert (found.rows, found.remarks) == ([row], [])


def test_talks_about_pictures_are_those_of_json(tmp_path: Path) -> None:
    """Parts of a message have one set of keys in a table."""
    rows = [
        {
            "image": "a.png",
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
            ],
        }
    ]
    wanted = talk_of(load_rows(to_jsonl(rows, tmp_path), "train").rows[0])
    for carrier in (to_parquet, to_saved, to_hub):
        assert talk_of(load_rows(carrier(rows, tmp_path), "train").rows[0]) == wanted
