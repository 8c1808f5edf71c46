"""What people mistake for something else: every mistake has its own line, before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuroada_cli.adapter.find import find_adapter
from neuroada_cli.cli.app import main
from neuroada_cli.data.reading import read_file
from neuroada_cli.errors import DataError, ModelError, OutputError
from neuroada_cli.hub.resolve import read_config
from neuroada_cli.show.figures import check_name


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("inside", ["", "best", "checkpoint-3/../last"])
def test_a_second_adapter_is_not_taken_for_the_folder_to_write(
    inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        folder = Path(os.path.normpath(tmp_path / name / inside))
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert code_of("merge", str(tmp_path / "one"), str(tmp_path / "two"), "--overwrite") == 2
    said = capsys.readouterr().err
    assert "two holds an adapter already" in said
    assert "--weights 1,1 --out OUT adds the two" in said


def test_an_export_without_a_format_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert code_of("export", str(tmp_path), str(tmp_path / "out")) == 2
    assert "--to: is missing; choose peft-supertuning, peft-shira, " in capsys.readouterr().err


def test_links_of_a_cache_that_stayed_behind_are_named(tmp_path: Path) -> None:
    """`cp -r snapshots/REV here` copies links, and not what they lead to."""
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).symlink_to(f"../../blobs/{name}")
    with pytest.raises(ModelError, match=r"adapter_config.json is a link to a file that is not .*cp -rL"):
        find_adapter(tmp_path)
    with pytest.raises(ModelError, match=r": config.json is a link to a file that is not there"):
        read_config(tmp_path)


def test_a_run_in_place_of_a_model_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is a run, not a model; name its base model; train.start_from"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["README.md", "my.yaml", "rows", "rows.xlsx"])
def test_what_is_no_file_of_rows_is_not_to_be_mended_line_by_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("name: my\nmodel: x\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"is no JSON, and its name does not end like .*; end it in .jsonl, "):
        read_file(tmp_path / name)
    (tmp_path / name).write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    assert len(read_file(tmp_path / name).rows) == 2


def test_a_picture_that_could_not_be_written_is_told_first(tmp_path: Path) -> None:
    check_name(tmp_path / "a.png", "--plot")
    check_name(None, "--plot")
    with pytest.raises(OutputError, match="nowhere does not exist"):
        check_name(tmp_path / "nowhere" / "a.png", "--plot")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_name(tmp_path / "b.png", "--plot")
