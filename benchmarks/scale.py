"""What one of several processes needs and sends: predicted for large models, checked on models cut in depth.

    python benchmarks/scale.py

Nothing large is loaded: the predictions come from configurations alone. The check trains small models of the
same make on 2 and 4 gloo ranks of this machine, counts the bytes of live tensors and of messages, and puts
the prediction beside them. Rewrites benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import RESULTS

from neuroada_cli import files, hub, memory
from neuroada_cli.benchmarking import shapes
from neuroada_cli.delta.targets import find_targets
from neuroada_cli.machine.load import machine
from neuroada_cli.methods import METHODS
from neuroada_cli.ranks.group import join, leave

GB = 1e9
# shape, quantisation; targets: the linear layers, without experts, which `train.parallel: shard` refuses
RUNS = (
    ("llama2-70b", None), ("llama2-70b", "nf4"), ("mixtral-8x7b", None), ("mixtral-8x7b", "nf4"),
    ("llama3-405b", None), ("llama3-405b", "nf4"),
)  # fmt: skip
PLACES = ((8, 24), (8, 80), (32, 80))  # processes, GB of each
ROOM = 0.9  # of it that a step may be predicted to take, as `train.parallel: auto` has it
ROWS, TOKENS, K = 2, 512, 1  # of every process's micro-batch
SMALL = {
    "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "num_key_value_heads": 4,
    "vocab_size": 8000,
    "tie_word_embeddings": False,
}  # fmt: skip
CHECKED_TOKENS = 128
# of the check: blocks, K, data type, quantisation, gradient checkpointing
CHECKS = (
    (2, 1, "bf16", None, False),
    (6, 1, "bf16", None, True),
    (6, 20, "fp32", None, False),
    (6, 4, "bf16", "nf4", True),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A model without weights, and how a step on it goes."""

    skeleton: torch.nn.Module
    k: int
    dtype: torch.dtype
    quantization: str | None
    gradient_checkpointing: bool
    rows: int = ROWS
    tokens: int = TOKENS

    @functools.cached_property
    def step(self) -> memory.StepBytes:
        """Of one process that has the whole model, not quantised."""
        return memory.predict_step(
            self.skeleton, self.counts, METHODS["neuroada"].build(), self.k, self.rows, self.tokens,
            self.dtype, gradient_checkpointing=self.gradient_checkpointing,
        )  # fmt: skip

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        heads = hub.default_exclude(self.skeleton)
        targets = find_targets(self.skeleton, heads=heads)
        return {name: self.k for name, target in targets.items() if target.layout.experts is None}

    def predicted(self, processes: int, sharded: bool = True) -> memory.ProcessBytes:
        heads = hub.default_exclude(self.skeleton)
        linear = [
            n for n, m in self.skeleton.named_modules() if isinstance(m, torch.nn.Linear) and n not in heads
        ]
        quantized = dict.fromkeys(linear, self.quantization) if self.quantization else {}
        return memory.of_process(
            self.skeleton, self.counts, self.step, processes, sharded, self.dtype, quantized
        )


def predictions() -> Iterator[dict[str, Any]]:
    for name, quantization in RUNS:
        model = shapes.build(name, device="meta").model
        case = Case(model, K, torch.bfloat16, quantization, True)
        for processes, room in PLACES:
            found = case.predicted(processes)
            yield {
                "model": name, "parameters": sum(p.numel() for p in model.parameters()),
                "adapted": len(case.counts), "quantization": quantization, "processes": processes,
                "memory_bytes": int(room * GB), "rows": ROWS, "tokens": TOKENS, "k": K, "dtype": "bf16",
                "gradient_checkpointing": True, **dataclasses.asdict(found), "peak": found.peak,
                "fits": found.peak <= ROOM * room * GB,
            }  # fmt: skip


def small_model(folder: Path, blocks: int) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    target = folder / f"blocks{blocks}"
    LlamaForCausalLM(LlamaConfig(**SMALL, num_hidden_layers=blocks)).bfloat16().save_pretrained(target)
    return target


def checks(folder: Path) -> Iterator[dict[str, Any]]:
    """Each in processes of its own, which know nothing of the one before."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for blocks, k, dtype, quantization, checkpointing in CHECKS:
        model = small_model(folder, blocks)
        case = Case(
            hub.open_base(model).skeleton, k, hub.TORCH_DTYPES[dtype], quantization, checkpointing,
            tokens=CHECKED_TOKENS,
        )  # fmt: skip
        for processes in (2, 4):
            words = json.dumps([str(model), k, dtype, quantization, checkpointing])
            command = [*launch, f"--nproc-per-node={processes}", __file__, "--rank", words]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            measured = json.loads(done.stdout.splitlines()[-1])
            found = case.predicted(processes)
            yield {
                "blocks": blocks, "k": k, "dtype": dtype, "quantization": quantization,
                "gradient_checkpointing": checkpointing, "processes": processes, "rows": case.rows,
                "tokens": case.tokens, "peak_measured": measured["peak"], "peak_predicted": found.peak,
                "sent_measured": measured["sent"], "sent_predicted": found.sent,
            }  # fmt: skip


def one_rank(words: str) -> None:
    """A process of a check; rank 0 prints what it measured."""
    from neuroada_cli.benchmarking.ranks import measure

    model, k, dtype, quantization, checkpointing = json.loads(words)
    ranks = join()
    torch.set_num_threads(1)
    found = measure(
        ranks, hub.open_base(Path(model)), k, hub.TORCH_DTYPES[dtype], ROWS, CHECKED_TOKENS, checkpointing,
        quantization,
    )  # fmt: skip
    if ranks.first:
        print(json.dumps(dataclasses.asdict(found)), flush=True)
    leave(ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description="What one of several processes needs and sends.")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        one_rank(given.rank)
        return
    predicted = []
    for row in predictions():
        predicted.append(row)
        what = f"{row['model']} {row['quantization'] or row['dtype']}, {row['processes']} processes"
        print(f"{what:40} peak {row['peak'] / GB:7.2f} GB, sends {row['sent'] / GB:8.1f} GB", flush=True)
    checked = []
    with tempfile.TemporaryDirectory() as folder:
        for row in checks(Path(folder)):
            checked.append(row)
            off = row["peak_predicted"] / row["peak_measured"] - 1
            print(f"{row}: {100 * off:+.1f} %", flush=True)
    files.write_json(
        RESULTS / "scale.json", {"machine": machine(), "predicted": predicted, "checked": checked}
    )


if __name__ == "__main__":
    main()
