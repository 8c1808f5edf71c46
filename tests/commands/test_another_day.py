"""A chat template that writes the day: a run keeps the one on which it began, wherever it goes on."""

from __future__ import annotations

import datetime
import json
import locale
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import pico_llama
from templates_table import chat_tokenizer
from tiny_run import hashes, losses, one_thread, stop_in_step  # noqa: F401

from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands import merge, train
from neuroada_cli.errors import OutputError, Stopped
from neuroada_cli.recipe.load import load_recipe, recipe_from
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.tasks import instruct


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tokenizer = chat_tokenizer("GPT-2", "Llama 3.2, dated")
    pico_llama(vocabulary=len(tokenizer), max_position_embeddings=128).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def recipe(base: Path, name: str) -> Recipe:
    rows = base.parent / "rows.jsonl"
    turns = [
        [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}] for n in range(8)
    ]
    rows.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns), encoding="utf-8")
    values: dict[str, Any] = {
        "name": name, "run_dir": str(base.parent / name), "device": "cpu",
        "model": {"path": str(base), "dtype": "fp32"},
        "data": {"task": "instruct", "train": str(rows), "validation": str(rows)},
        "train": {"epochs": 2, "batch_size": 4, "save_every": 1},
        "eval": {"max_new_tokens": 4},
    }  # fmt: skip
    return recipe_from(values)


def go(recipe: Recipe, **options: Any) -> train.TrainResult:
    return train.run(recipe, quiet=True, **options)


def on(patch: pytest.MonkeyPatch, day: str) -> None:
    patch.setattr(instruct, "today", lambda: datetime.date.fromisoformat(day))


def test_a_run_goes_on_on_another_day_in_another_place_to_the_same_bits(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "2025-03-04")
    whole = go(recipe(base, "whole"))
    with monkeypatch.context() as patch:
        stop_in_step(patch, 2)
        with pytest.raises(Stopped):
            go(recipe(base, "run"))
    on(monkeypatch, "2025-03-05")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    before = locale.setlocale(locale.LC_ALL)
    others = [name for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "C.UTF-8") if _has(name)]
    try:
        locale.setlocale(locale.LC_ALL, others[0])
        result = go(recipe(base, "run"), resume=True)
    finally:
        locale.setlocale(locale.LC_ALL, before)
        monkeypatch.undo()
        time.tzset()
    assert result.last is not None
    assert whole.last is not None
    assert hashes(result.last) == hashes(whole.last)
    assert losses(result.run_dir) == losses(whole.run_dir)
    kept = load_recipe(result.last / "recipe.yaml")
    assert kept.data.date == datetime.date(2025, 3, 4)


def _has(name: str) -> bool:
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_ALL, before)
    return True


def test_the_day_of_the_run_is_asked_in_eval_and_stands_on_the_merged_models_card(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "2025-03-04")
    run = go(recipe(base, "run")).run_dir
    on(monkeypatch, "2026-01-01")
    out = merge.run(run, base.parent / "merged", quiet=True).out
    for target in (run, out):
        found = evaluate.run(str(target), quiet=True).predictions["instruct"]
        assert {p.prompt.partition("Today is ")[2][:11] for p in found} == {"04 Mar 2025"}
    assert "04 March 2025" not in (base / "chat_template.jinja").read_text()
    assert "| day told to the chat template | 2025-03-04 |" in (out / "README.md").read_text(encoding="utf-8")


def test_a_recipe_may_name_the_day_and_may_not_change_it(base: Path) -> None:
    values = recipe(base, "run").model_dump(mode="json")
    values["data"]["date"] = "2024-07-26"
    text = yaml.safe_dump(values)
    named = recipe_from(yaml.safe_load(text))
    assert named.data.date == datetime.date(2024, 7, 26)
    run = go(named)
    assert run.last is not None
    values["data"]["date"] = "2024-07-27"
    with pytest.raises(OutputError, match=r"data\.date: 2024-07-26 -> 2024-07-27"):
        go(recipe_from(values), resume=True)
