"""What makes a folder a model, an adapter or a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuroada_cli.files.folders import (
    ADAPTER_CONFIG,
    CONFIG,
    LINKS,
    files_beneath,
    holds_anything,
    is_adapter,
    is_model,
    is_run,
)


@pytest.mark.parametrize(
    ("held", "model", "adapter"),
    [
        ((), False, False), ((CONFIG,), True, False), ((ADAPTER_CONFIG,), False, True),
        ((CONFIG, ADAPTER_CONFIG), False, True),  # an adapter that carries its base's config
    ],
)  # fmt: skip
def test_the_file_makes_the_folder(held: tuple[str, ...], model: bool, adapter: bool, tmp_path: Path) -> None:
    for name in held:
        (tmp_path / name).write_text("{}")
    assert (is_model(tmp_path), is_adapter(tmp_path), is_run(tmp_path)) == (model, adapter, False)
    assert not is_model(tmp_path / "absent")


@pytest.mark.parametrize("link", LINKS)
def test_a_run_has_a_named_checkpoint(link: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / ADAPTER_CONFIG).write_text("{}")
    assert not is_run(tmp_path)
    (tmp_path / link).symlink_to("checkpoint-3")
    assert is_run(tmp_path)
    assert not is_adapter(tmp_path)


def test_a_folder_holds_anything_or_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert holds_anything(tmp_path)
    assert not any(holds_anything(tmp_path / name) for name in ("empty", "file", "none"))


def test_files_beneath_are_those_that_are_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "in/b", "in/deep/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert {file: about.st_size for file, about in files_beneath(tmp_path)} == {
        tmp_path / "a": 1,
        tmp_path / "in/b": 4,
        tmp_path / "in/deep/c": 9,
    }
    lstat = os.lstat

    def remove_then_look(path: str | Path) -> os.stat_result:
        if path == tmp_path / "a":
            (tmp_path / "a").unlink()
            (tmp_path / "in/deep/c").unlink()
            (tmp_path / "in/deep").rmdir()
        return lstat(path)

    monkeypatch.setattr(os, "lstat", remove_then_look)
    assert [file for file, _ in files_beneath(tmp_path)] == [tmp_path / "in/b"]
    assert list(files_beneath(tmp_path / "none")) == []
