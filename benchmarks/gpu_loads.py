"""What `gpu.py` trains: LLaMA-shaped models with random weights, and batches like those of real runs."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neuroada_cli import files
from neuroada_cli.benchmarking import shapes
from neuroada_cli.benchmarking.measure import BenchPlan, Subject, all_targets, measure, settings_of
from neuroada_cli.benchmarking.rows import as_json
from neuroada_cli.benchmarking.steps import RealRows
from neuroada_cli.data.batch import IGNORED, Batch, Encoded, pack
from neuroada_cli.loop.recomputing import enable_checkpointing
from neuroada_cli.machine.load import machine

BUDGET = 80_000_000_000  # bytes: what the paper's throughput is compared in
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Packed(RealRows):
    """The rows one behind the other, without padding."""

    def batch(self, rows: int, device: str) -> Batch:
        return pack([self.encoded[i % len(self.encoded)] for i in range(rows)]).to(device)


def recipe_rows(vocabulary: int, count: int = 64) -> list[Encoded]:
    """Rows of about 80 tokens, of which the last few are learnt, as in commonsense reasoning."""
    chance = random.Random(0)
    rows = []
    for row in range(count):
        length, answer = chance.randint(45, 115), chance.randint(6, 12)
        tokens = [chance.randrange(4, vocabulary) for _ in range(length)]
        labels = [IGNORED] * (length - answer) + tokens[-answer:]
        rows.append(Encoded(tokens, labels, row, prompt=length - answer))
    return rows


@dataclass(frozen=True)
class Load:
    """model  a built-in shape
    rows      None: random tokens, `batch` x `sequence`; "padded", "packed": `batch` rows as a recipe has them
    recomputes, packed_weights  gradient checkpointing; "nf4"
    """

    compare: tuple[str, ...] = ("lora",)
    k: tuple[int, ...] = (1, 20)
    batch: int = 8
    sequence: int = 512
    model: str = "llama-7b"
    rows: str | None = None
    budget: int | None = None
    recomputes: bool = False
    packed_weights: str | None = None
    rounds: int = 8


class Models:
    """The one model that is loaded: the next phase often takes the same."""

    def __init__(self, dtype: str, device: str) -> None:
        self.dtype, self.device = dtype, device
        self._kept: tuple[tuple[str, str | None], Subject] | None = None

    def get(self, name: str, quantization: str | None) -> Subject:
        if self._kept is None or self._kept[0] != (name, quantization):
            self.forget()
            built = shapes.build(name, None, DTYPES[self.dtype], self.device)
            if quantization is not None:
                _quantize(built.model, self.device)
            subject = Subject(
                name, built.model, all_targets(built.model), built.kind, built.layers, built.depth
            )
            self._kept = (name, quantization), subject
        return self._kept[1]

    def forget(self) -> None:
        self._kept = None
        if self.device != "cpu":
            torch.cuda.empty_cache()


def _quantize(model: torch.nn.Module, device: str) -> None:
    """Every linear layer but the output embedding in nf4, as bitsandbytes packs it."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and name != "lm_head":
            packed = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, quant_type="nf4",
                compute_dtype=module.weight.dtype,
            )  # fmt: skip
            packed.weight = bnb.nn.Params4bit(module.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            model.set_submodule(name, packed.to(device))


def steps(models: Models, load: Load, target: Path, tell: Callable[[str], None], smoke: bool = False) -> None:
    """Measure one load and write its rows. Memory is not predicted here: that needs no GPU."""
    if smoke:
        small = {"sequence": 32, "batch": 2, "model": "pico", "rounds": 2}
        load = dataclasses.replace(load, **small, budget=2_000_000 if load.budget else None)  # type: ignore[arg-type]
    subject = models.get(load.model, load.packed_weights)
    if load.recomputes:
        enable_checkpointing(subject.model)
    plan = BenchPlan(
        load.compare, load.k, load.batch, load.sequence, load.rounds, 1 if smoke else 3, models.device,
        DTYPES[models.dtype], load.budget, _rows(load, subject), predicts=False,
    )  # fmt: skip
    try:
        rows = measure(subject, plan, tell)
    finally:
        if load.recomputes:
            models.forget()  # the flags lie in its modules
    settings: dict[str, Any] = settings_of(subject, plan, models.dtype)
    settings |= {"quantization": load.packed_weights, "gradient_checkpointing": load.recomputes}
    files.write_json(target, as_json(rows, settings, machine()))


def _rows(load: Load, subject: Subject) -> RealRows | None:
    if load.rows is None:
        return None
    encoded = recipe_rows(int(subject.model.config.vocab_size))  # type: ignore[union-attr, arg-type]
    kind = Packed if load.rows == "packed" else RealRows
    return kind(encoded, 0, f"random rows of 45 to 115 tokens, {load.rows}")
