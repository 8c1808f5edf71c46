"""The examples of docs/peft.md, run one after another as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import pico_llama
from tiny_run import one_thread  # noqa: F401
from tiny_tokenizer import SIZE, byte_tokenizer

pytest.importorskip("trl", reason="trl is not installed")

from neuroada_cli.adapter.folder import read_adapter
from neuroada_cli.commands import merge
from neuroada_cli.export.formats import FORMATS

PAGE = (Path(__file__).parents[2] / "docs" / "peft.md").read_text(encoding="utf-8")


@pytest.mark.slow  # three of TRL's trainers
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pico_llama(vocabulary=SIZE, max_position_embeddings=256).save_pretrained(tmp_path / "model")
    byte_tokenizer(pad_token="<unk>").save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"MODEL": str(tmp_path / "model")}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "docs/peft.md", "exec"), names)
    assert all(not delta_OK.any() for delta_OK in read_adapter(tmp_path / "adapter").deltas.values())
    for place in ("sft", "dpo/checkpoint-2", "grpo/checkpoint-2"):
        assert read_adapter(tmp_path / place).deltas
    assert merge.run("sft", "out", quiet=True).stats.changed


def test_every_export_is_named() -> None:
    assert re.findall(r"^\| `([\w-]+)` \|", PAGE, flags=re.M) == list(FORMATS)
