"""Rows of a hub set are those of its files: the real `datasets`, offline, on a folder of its name."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from neuroada_cli.data.sources import field_for, load_rows
from neuroada_cli.data.typed import Altered
from neuroada_cli.errors import DataError
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.tasks.task import examples_of

ROWS: list[dict[str, Any]] = [
    {
        "prompt": "when?",
        "completion": "2024-01-02",
        "at": "2024-01-02T03:04:05",
        "n": 2**70,
        "id": "007",
        "w": 1,
    },
    {
        "prompt": "and?",
        "completion": "2024-05-06",
        "at": "2024-05-06T00:00:00",
        "n": 5,
        "id": "008",
        "w": 2.5,
    },
]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own/set/data"
    folder.mkdir(parents=True)
    return folder


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_of_the_hub_is_read_as_it_stands(offline: Path) -> None:
    (offline / "train-00000-of-00002.jsonl").write_text(lines(ROWS[:1]))
    (offline / "train-00001-of-00002.jsonl").write_text(lines(ROWS[1:]))
    (offline / "test-00000-of-00001.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[1:]).encode()))
    assert load_rows("own/set", "train").rows == ROWS
    assert load_rows("own/set", "test").rows == ROWS[1:]


def test_tables_of_text_keep_their_text(offline: Path) -> None:
    (offline / "train.csv").write_text("prompt,completion\nwhich?,007\nhow?,NA\n")
    assert [row["completion"] for row in load_rows("own/set", "train").rows] == ["007", "NA"]


def test_what_is_typed_comes_as_it_was_typed(offline: Path) -> None:
    import datasets

    typed = datasets.Dataset.from_list([{"prompt": "a", "n": 2**62 + 1, "x": 0.1}])
    typed.to_parquet(offline / "train.parquet")
    assert load_rows("own/set", "train").rows == [{"prompt": "a", "n": 2**62 + 1, "x": 0.1}]


def test_a_bad_line_is_named(offline: Path) -> None:
    (offline / "train.jsonl").write_text(lines(ROWS) + "{\n")
    with pytest.raises(DataError, match=r"own/set/train.jsonl:3"):
        load_rows("own/set", "train")


def test_what_datasets_made_of_json_is_refused_where_it_is_read(offline: Path) -> None:
    import datasets

    large = Version(datasets.__version__).major >= 5  # before, it reads no set with a number beyond 64 bits
    (offline / "train.jsonl").write_text(lines([row if large else {**row, "n": 1} for row in ROWS]))
    datasets.load_dataset("own/set", split="train").save_to_disk("saved")
    found = load_rows("saved", "train")
    assert isinstance(found.rows[0]["n"], Altered) is large
    assert found.rows[1]["w"] == 2.5
    with pytest.raises(DataError, match=r"completion was text that `datasets` made a time of; name the JSON"):
        examples_of(get_task("instruct"), found.rows, "reft", "saved")
    unread = [{**row, "completion": "text"} for row in found.rows]
    assert len(examples_of(get_task("instruct"), unread, "reft", "saved")) == 2


def test_json_that_only_datasets_can_unpack_is_refused_where_it_altered_text(offline: Path) -> None:
    rows = [{key: row[key] for key in ("prompt", "completion")} for row in ROWS]
    (offline / "train.jsonl.bz2").write_bytes(bz2.compress(lines(rows).encode()))
    found = load_rows("own/set", "train")
    assert [row["prompt"] for row in found.rows] == ["when?", "and?"]
    with pytest.raises(DataError, match=r"completion was text that `datasets` made a time of"):
        examples_of(get_task("instruct"), found.rows, "reft", "own/set")


def test_times_that_somebody_meant_are_iso_text(offline: Path) -> None:
    import datetime

    import datasets

    rows = [{"prompt": "when?", "completion": datetime.datetime(2024, 1, 2)}]
    datasets.Dataset.from_list(rows).save_to_disk("saved")
    assert load_rows("saved", "train").rows[0]["completion"] == "2024-01-02T00:00:00"


def test_data_field_speaks_of_hub_files_too(offline: Path) -> None:
    (offline / "train.json").write_text(json.dumps({"rows": ROWS, "others": [{"a": 1}]}))
    assert load_rows("own/set", "train", key="rows").rows == ROWS


@pytest.mark.parametrize(
    ("source", "expected"),
    [("v.jsonl", None), ("v.csv.gz", None), ("v.json", "rows"), ("own/set", "rows"), ("v.json:test", "rows")],
)
def test_data_field_is_not_asked_of_files_of_lines(source: str, expected: str | None) -> None:
    assert field_for(source, "rows") == expected
