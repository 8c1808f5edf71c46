"""The recipes for mixtures of experts and for pictures, on tiny copies of their models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_families import tiny
from tiny_pictures import tiny_writer_folder
from tiny_run import one_thread, tiny_tokenizer  # noqa: F401

from neuroada_cli.commands import train, validate
from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.recipe.schema import Recipe

MIXTURES = {
    "qwen3_30b_a3b_commonsense": "qwen3_moe",
    "gpt_oss_20b_commonsense": "gpt_oss",
    "mixtral_8x7b_commonsense_k1": "mixtral",
}
WRITERS = {"llava15_7b_textvqa": "llava", "qwen25_vl_7b_textvqa": "qwen2_5_vl"}


def on_a_tiny_copy(name: str, folder: Path) -> Recipe:
    base, rows = folder / "base", folder / "rows.jsonl"
    changes = [f"model.path={base}", f"run_dir={folder / 'run'}", "device=cpu"]
    if name in MIXTURES:
        tiny(MIXTURES[name], vocab_size=259, max_position_embeddings=512).save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
        row = {"instruction": "Is 2 even?", "output": "the correct answer is true", "answer": "true"}
        rows.write_text(f"{json.dumps(row)}\n" * 20)
        changes += [f"data.train={rows}", "data.validation_rows=0"]
    else:
        tiny_writer_folder(base, WRITERS[name])
        changes += ["data.task=shapes_vqa", "eval.tasks=[shapes_vqa]", "data.limit=20", "data.max_length=256"]
    return load_recipe(name, changes)


@pytest.mark.parametrize(
    "name", [*MIXTURES, *(pytest.param(name, marks=pytest.mark.slow) for name in WRITERS)]
)
def test_it_is_valid(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validate.run(on_a_tiny_copy(name, tmp_path))
    assert f"{name}: fine" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MIXTURES, *WRITERS])
def test_its_memory_is_predicted_or_it_says_why_not(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = train.run(on_a_tiny_copy(name, tmp_path), dry_run=True)
    assert planned.trainable > 0
    assert planned.peak_bytes > 0 or "is not predicted: " in capsys.readouterr().out
