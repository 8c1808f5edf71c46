"""A tiny model folder with a tokenizer, and recipes on it: what tests of whole runs share."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import pico_bert, pico_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from neuroada_cli.loop import loop
from neuroada_cli.recipe.load import recipe_from
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.training.log import read_metrics


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For models this small a second thread costs more than it brings. Import it to use it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<unk>", "<s>", "</s>"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: knows every text, needs no training."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *BYTES])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def tiny_llama_folder(folder: Path, **changes: Any) -> Path:
    """A Llama with attention dropout, since only dropout shows whether random states are restored."""
    settings = {"max_position_embeddings": 256, "attention_dropout": 0.1} | changes
    model = pico_llama(vocabulary=len(SPECIAL) + len(BYTES), **settings)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_bert_folder(folder: Path) -> Path:
    """An encoder without a head, so that a classifier gets a fresh one."""
    model = pico_bert(vocab_size=len(SPECIAL) + len(BYTES), max_position_embeddings=256)
    model.bert.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_rte_folder(folder: Path) -> Path:
    """A data folder with rows in the form of GLUE's RTE: does the second text repeat the first?"""
    (folder / "glue_rte").mkdir(parents=True)
    for split, count in (("train", 24), ("validation", 16)):
        rows = [
            {"sentence1": f"item {i}", "sentence2": f"item {i if i % 2 else i + 1}", "label": i % 2}
            for i in range(count)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "glue_rte" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def tiny_recipe(model: Path, run_dir: Path, /, **sections: dict[str, Any]) -> Recipe:
    """24 due-date rows, 8 for validation, 2 epochs of 6 steps of 2 micro-batches."""
    values: dict[str, Any] = {
        "name": "tiny",
        "run_dir": str(run_dir),
        "device": "cpu",
        "model": {"path": str(model), "dtype": "fp32"},
        "select": {"k": 2},
        "data": {"task": "due_dates", "limit": 24, "validation_limit": 8, "max_length": 256},
        "optim": {"lr": 1e-2, "warmup_ratio": 0.2},
        "train": {"epochs": 2, "batch_size": 4, "micro_batch_size": 2},
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    return recipe_from(values)


def hashes(checkpoint: Path) -> dict[str, str]:
    """Every tensor file of a checkpoint, and its progress."""
    found = {
        str(file.relative_to(checkpoint)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in checkpoint.rglob("*.safetensors")
    }
    state = json.loads((checkpoint / "state" / "state.json").read_text(encoding="utf-8"))
    return found | {"progress": json.dumps(state["progress"]), "rng": json.dumps(state["rng"])}


def losses(run_dir: Path) -> list[tuple[int, float, float]]:
    entries = read_metrics(run_dir / "metrics.jsonl")
    return [(e["step"], e["loss"], e.get("grad_norm", 0.0)) for e in entries]


def stop_in_step(monkeypatch: pytest.MonkeyPatch, number: int, sent: int = signal.SIGTERM) -> None:
    """A real signal from inside step `number` (1 is the first)."""
    original = loop.train_step

    def step(*args: Any, **keywords: Any) -> Any:
        if args[5] == number - 1:
            os.kill(os.getpid(), sent)
        return original(*args, **keywords)

    monkeypatch.setattr(loop, "train_step", step)
