"""Rows with and without pictures cannot be dealt to processes that hold a model together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_pictures import tiny_writer_folder
from tiny_run import tiny_recipe

from neuroada_cli.training.parallel import why_not_sharded
from neuroada_cli.training.preflight import check


@pytest.mark.parametrize(("pictures", "refused"), [([1, 0, 1], True), ([1, 1, 1], False)])
def test_mixed_rows_are_refused_before_a_process_waits_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[int], refused: bool
) -> None:
    monkeypatch.setattr("neuroada_cli.training.parallel.TORCH", "2.13.0")
    tiny_writer_folder(tmp_path / "base", "llava")
    Image.new("RGB", (32, 32)).save(tmp_path / "p.png")
    answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}] * seen + [{"type": "text", "text": "what"}]},
                answer,
            ],
            "images": ["p.png"] * seen,
        }
        for seen in pictures
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tiny_recipe(
        tmp_path / "base",
        tmp_path / "run",
        data={
            "task": "image_text",
            "train": str(tmp_path / "rows.jsonl"),
            "limit": None,
            "validation_limit": None,
        },
    )
    why = why_not_sharded(check(recipe, overwrite=False))
    assert (why is not None and "only some have pictures" in why) == refused
