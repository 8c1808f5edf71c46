"""A chat template of one's own takes the place of all that the base brings, whoever reads the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import pico_llama
from tiny_merge import write_tiny_adapter
from tiny_tokenizer import SIZE, byte_tokenizer
from transformers import AutoTokenizer

from neuroada_cli import files
from neuroada_cli.commands import merge
from neuroada_cli.recipe.load import recipe_from

OWN = "{{ messages[0]['content'] }}."


@pytest.mark.parametrize("own", [True, False])
def test_no_other_template_is_left_beside_ones_own(own: bool, tmp_path: Path) -> None:
    """llama.cpp's converter takes the tokenizer's entry where there is one, transformers the file."""
    base = tmp_path / "base"
    pico_llama(vocabulary=SIZE).save_pretrained(base)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(base)
    stated = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(stated | {"chat_template": "base"}))
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    (base / "chat_template.jinja").write_text("base")
    write_tiny_adapter(tmp_path / "adapter", base)
    data = {"task": "instruct", "train": "rows.json", "protocol": "reft"}
    data |= {"chat_template": "own.jinja"} if own else {}
    with files.atomic_folder(tmp_path / "again") as folder:
        for file in (tmp_path / "adapter").iterdir():
            if file.name != files.MANIFEST:
                files.copy_file(file, folder / file.name)
        tokenizer.chat_template = OWN
        tokenizer.save_pretrained(folder)
        recipe = recipe_from({"name": "mine", "model": {"path": str(base)}, "data": data})
        files.write_json(folder / "recipe.yaml", recipe.model_dump(mode="json"))
    merge.run(tmp_path / "again", tmp_path / "out", quiet=True)
    merged = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert merged.get("chat_template") == (None if own else "base")
    wanted = OWN if own else {"default": "base", "tool_use": "tools"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == wanted
    files.verify_folder(tmp_path / "out")
