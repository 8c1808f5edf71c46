"""The peak that a dry run tells is that of the run's own steps, however rows and attention are laid out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import (  # noqa: F401
    one_thread,
    tiny_bert_folder,
    tiny_llama_folder,
    tiny_recipe,
    tiny_rte_folder,
    tiny_tokenizer,
)
from transformers import T5Config, T5ForConditionalGeneration

from neuroada_cli import hub
from neuroada_cli.data.batch import collate
from neuroada_cli.loop.loop import Schedule
from neuroada_cli.loop.loss import LOSSES, token_loss
from neuroada_cli.loop.validate import validate
from neuroada_cli.memory import Breakdown, StepMemory, TensorBytes
from neuroada_cli.training.plan import predicted_memory
from neuroada_cli.training.preflight import check
from neuroada_cli.training.settings import loop_settings


@pytest.mark.parametrize(
    "settings",
    [
        {"train": {"packing": True}},
        {"model": {"attention": "eager"}},
        {"train": {"packing": True}, "model": {"attention": "eager"}},
    ],
    ids=str,
)
def test_packed_rows_and_eager_attention_are_predicted(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path / "base", attention_dropout=0.0)
    train = {"batch_size": 8, "micro_batch_size": 8, **settings.get("train", {})}
    checked = check(tiny_recipe(folder, tmp_path / "run", **{**settings, "train": train}), overwrite=False)
    guess = predicted_memory(checked.recipe, checked.plan, checked.rows, checked.base, "cpu")
    assert isinstance(guess, Breakdown)

    loaded = hub.load_model(
        folder, "causal-lm", "fp32", attention=checked.recipe.model.attention
    ).model.train()
    indices = {
        name: torch.zeros(rows, 2, dtype=torch.int32) + torch.arange(2, dtype=torch.int32)
        for name, (rows, _) in checked.plan.sizes.shapes.items()
    }
    method = checked.plan.facts.build()
    step = StepMemory(loaded, method, lambda: method.attach(loaded, indices), TensorBytes())
    longest = max(checked.rows.data.train, key=len)
    data = dataclasses.replace(checked.rows.data, train=[longest] * 8)
    batch = Schedule(data, loop_settings(checked.recipe)).micro_batches(0)[0]
    assert guess.peak == pytest.approx(step.run(lambda: token_loss(loaded, batch)[0]).peak, rel=0.12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_validation_on_longer_rows_is_predicted(attention: str, tmp_path: Path) -> None:
    """Its pass takes more than a step where rows are long enough, though nothing is kept of it."""
    folder = tiny_llama_folder(tmp_path / "base", attention_dropout=0.0, max_position_embeddings=1024)
    for name, words in (("short", 2), ("long", 100)):
        rows = [{"prompt": "a" * (1 + n % 2), "completion": "seven w" * words} for n in range(8)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    recipe = tiny_recipe(
        folder,
        tmp_path / "run",
        data={
            "task": "instruct",
            "train": str(tmp_path / "short.jsonl"),
            "validation": str(tmp_path / "long.jsonl"),
            "max_length": 1024,
        },
        model={"attention": attention},
        train={"batch_size": 4, "micro_batch_size": 4},
    )
    checked = check(recipe, overwrite=False)
    guess = predicted_memory(checked.recipe, checked.plan, checked.rows, checked.base, "cpu")
    assert isinstance(guess, Breakdown)

    loaded = hub.load_model(folder, "causal-lm", "fp32", attention=attention).model.train()
    indices = {
        name: torch.arange(2, dtype=torch.int32).repeat(rows, 1)
        for name, (rows, _) in checked.plan.sizes.shapes.items()
    }
    method = checked.plan.facts.build()
    step = StepMemory(loaded, method, lambda: method.attach(loaded, indices), TensorBytes())
    step.make_moments()
    schedule = Schedule(checked.rows.data, loop_settings(checked.recipe))
    trained = step.step(lambda: token_loss(loaded, schedule.micro_batches(0)[0])[0]).peak
    padded = collate(checked.rows.data.validation[:4], 0)
    with step.meter:
        step.meter.restart()
        validate(loaded, [padded], "generation")
    assert step.meter.peak > 1.5 * trained
    assert guess.peak == pytest.approx(step.meter.peak, rel=0.05)


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_the_masks_of_encoders_are_predicted(kind: str, tmp_path: Path, monkeypatch) -> None:
    """Of rows of several lengths; T5 adds its bias of positions to them, per row and head."""
    monkeypatch.setenv("NEUROADA_DATA", str(tiny_rte_folder(tmp_path / "data")))
    folder, task = tmp_path / "base", "due_dates"
    if kind == "bert":
        tiny_bert_folder(folder)
        task = "rte"
    else:
        config = T5Config(
            vocab_size=len(tiny_tokenizer()), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            dropout_rate=0.0, decoder_start_token_id=0, eos_token_id=2,
        )  # fmt: skip
        T5ForConditionalGeneration(config).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    recipe = tiny_recipe(folder, tmp_path / "run", data={"task": task}, train={"micro_batch_size": 4})
    checked = check(recipe, overwrite=False)
    guess = predicted_memory(checked.recipe, checked.plan, checked.rows, checked.base, "cpu")
    assert isinstance(guess, Breakdown)

    loaded = hub.load_model(folder, checked.base.task, "fp32", num_labels=checked.task.num_labels).model
    indices = {
        name: torch.arange(2, dtype=torch.int32).repeat(rows, 1)
        for name, (rows, _) in checked.plan.sizes.shapes.items()
    }
    method = checked.plan.facts.build()
    step = StepMemory(loaded.train(), method, lambda: method.attach(loaded, indices), TensorBytes())
    rows = sorted(checked.rows.data.train, key=lambda row: len(row.input_ids))
    batch = collate([rows[-1], rows[-1], rows[-1], rows[0]], 0)
    loss = LOSSES[checked.task.kind]
    assert guess.peak == pytest.approx(step.run(lambda: loss(loaded, batch)[0]).peak, rel=0.05)
