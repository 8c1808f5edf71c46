"""What one of several processes needs and sends: predicted for large models, checked on models cut in depth.

    python benchmarks/scale.py

Nothing large is loaded: the predictions come from configurations alone. The check trains small models of the
same make on 2 and 4 gloo ranks of this machine, counts the bytes of live tensors and of messages, and puts
the prediction beside them. Rewrites benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from neuroada_cli.delta.targets import find_targets, shapes_of
from neuroada_cli.machine.load import machine
from neuroada_cli.methods import METHODS
from neuroada_cli.ranks.group import join, leave

GB = 1e9
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
# the published configurations, as far as shapes follow from them
MODELS: dict[str, dict[str, Any]] = {
    "Llama-2-70B": LLAMA | {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
    },
    "Mixtral-8x7B": {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "tie_word_embeddings": False,
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
        "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "Llama-3-405B": LLAMA | {
        "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
        "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip
RUNS = (
    ("Llama-2-70B", None),
    ("Llama-2-70B", "nf4"),
    ("Mixtral-8x7B", None),
    ("Llama-3-405B", None),
    ("Llama-3-405B", "nf4"),
)
PLACES = ((8, 24), (8, 80), (32, 80))  # processes, GB of each
ROWS, TOKENS, K = 2, 512, 1  # of every process's micro-batch
SMALL = LLAMA | {
    "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 8000,
}  # fmt: skip
# of the check: blocks, K, data type, quantisation, gradient checkpointing
CHECKS = (
    (2, 1, "bf16", None, False), (6, 1, "bf16", None, True), (6, 20, "fp32", None, False), (6, 4, "bf16", "nf4", True),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cut:
    """A base and how a step on it goes."""

    base: hub.Base
    k: int
    dtype: torch.dtype
    quantization: str | None
    gradient_checkpointing: bool
    rows: int = ROWS
    tokens: int = TOKENS

    def predicted(self, processes: int, sharded: bool = True) -> memory.ProcessBytes:
        skeleton = self.base.skeleton
        heads = hub.default_exclude(skeleton)
        counts = dict.fromkeys(shapes_of(find_targets(skeleton, heads=heads)), self.k)
        linear = [n for n, m in skeleton.named_modules() if isinstance(m, torch.nn.Linear) and n not in heads]
        step = memory.predict_step(
            skeleton, counts, METHODS["neuroada"].build(), self.k, self.rows, self.tokens, self.dtype,
            gradient_checkpointing=self.gradient_checkpointing,
        )  # fmt: skip
        quantized = dict.fromkeys(linear, self.quantization) if self.quantization else {}
        return memory.of_process(skeleton, counts, step, processes, sharded, self.dtype, quantized)


def base_of(folder: Path, config: dict[str, Any]) -> hub.Base:
    """The base of a configuration: with weights when it is small."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "config.json", config)
    weights = hub.Weights(folder, {}, {})
    return hub.Base(folder, hub.module_graph(folder, "causal-lm"), weights)


def predictions(folder: Path) -> Iterator[dict[str, Any]]:
    for name, quantization in RUNS:
        cut = Cut(base_of(folder / name, MODELS[name]), K, torch.bfloat16, quantization, True)
        for processes, room in PLACES:
            found = cut.predicted(processes)
            yield {
                "model": name, "quantization": quantization, "processes": processes, "memory_gb": room,
                "rows": ROWS, "tokens": TOKENS, "k": K, "dtype": "bf16", "gradient_checkpointing": True,
                **dataclasses.asdict(found), "peak": found.peak, "fits": found.peak <= 0.9 * room * GB,
            }  # fmt: skip


def small_model(folder: Path, blocks: int) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    target = folder / f"blocks{blocks}"
    LlamaForCausalLM(LlamaConfig(**SMALL, num_hidden_layers=blocks)).bfloat16().save_pretrained(target)
    return target


def checks(folder: Path) -> Iterator[dict[str, Any]]:
    """Each in processes of its own, which know nothing of the one before."""
    for blocks, k, dtype, quantization, checkpointing in CHECKS:
        model = small_model(folder, blocks)
        cut = Cut(hub.open_base(model), k, hub.TORCH_DTYPES[dtype], quantization, checkpointing, 2, 128)
        for processes in (2, 4):
            words = json.dumps([str(model), k, dtype, quantization, checkpointing])
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={processes}",
            ]
            done = subprocess.run(
                [*command, __file__, "--rank", words], check=True, capture_output=True, text=True
            )
            measured = json.loads(done.stdout.splitlines()[-1])
            found = cut.predicted(processes)
            yield {
                "blocks": blocks, "k": k, "dtype": dtype, "quantization": quantization,
                "gradient_checkpointing": checkpointing, "processes": processes,
                "peak_measured": measured["peak"], "peak_predicted": found.peak,
                "sent_measured": measured["sent"], "sent_predicted": found.sent,
            }  # fmt: skip


def one_rank(words: str) -> None:
    """A process of a check; rank 0 prints what it measured."""
    from neuroada_cli.benchmarking.ranks import measure

    model, k, dtype, quantization, checkpointing = json.loads(words)
    ranks = join()
    torch.set_num_threads(1)
    found = measure(
        ranks, hub.open_base(Path(model)), k, hub.TORCH_DTYPES[dtype], 2, 128, checkpointing, quantization
    )
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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predicted = []
        for row in predictions(folder):
            predicted.append(row)
            what = f"{row['model']} {row['quantization'] or row['dtype']}, {row['processes']} x {row['memory_gb']} GB"
            print(f"{what:40} peak {row['peak'] / GB:7.2f} GB, sends {row['sent'] / GB:8.1f} GB", flush=True)
        checked = []
        for row in checks(folder):
            checked.append(row)
            off = row["peak_predicted"] / row["peak_measured"] - 1
            print(f"{row}: {100 * off:+.1f} %", flush=True)
    files.write_json(
        RESULTS / "scale.json", {"machine": machine(), "predicted": predicted, "checked": checked}
    )


if __name__ == "__main__":
    main()
