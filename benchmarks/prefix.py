"""What a training step saves where rows share the beginning of their prompts, and where only targets ask.

    NEUROADA_DATA=folder python benchmarks/prefix.py    # rewrites benchmarks/results/prefix.json

Counts are over one epoch's batches, as `train` makes them (by length, 16 rows, protocol reft): the tokens,
padding included, that a step computes with and without `train.share_prefix`; and, of what a step's blocks
compute, how much a last block would save that works out queries, MLP and output only where a target follows.
Times are paired, on middling batches that have a prefix: the same batches, NeuroAda K=1 on every linear layer
of 10 of SmolLM2-135M's blocks (fp32), both ways in turns, on one thread, by what the processor took. Losses
and gradient norms of both ways stand beside them.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from typing import Any

import torch
from common import RESULTS

from neuroada_cli import files, hub
from neuroada_cli.data.batch import IGNORED, Batch, Encoded, collate, epoch_order, with_head
from neuroada_cli.data.inputs import encode_for, padding_for
from neuroada_cli.data.sources import load_rows
from neuroada_cli.delta.targets import find_targets
from neuroada_cli.loop.loss import logits_are_final, token_loss
from neuroada_cli.loop.optim import OptimSettings, adamw
from neuroada_cli.loop.step import train_step
from neuroada_cli.machine.load import machine
from neuroada_cli.methods import METHODS
from neuroada_cli.selection.criteria import choose
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.tasks.task import examples_of

MODEL, PROTOCOL, BATCH, SEED, LONGEST = "smollm2-135m", "reft", 16, 42, 512
SETS = {"commonsense15k": ("commonsense", "commonsense_15k"), "math10k": ("math", "math_10k")}
# of a SmolLM2 block's multiplications per token, those of queries, output projection and MLP
NOT_KEYS = (2 * 576 * 576 + 3 * 576 * 1536) / (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
BLOCKS, TIMED = 30, 10


def encoded(name: str, reader: hub.Reader) -> list[Encoded]:
    task_name, source = SETS[name]
    rows = load_rows(source, "train")
    examples = examples_of(get_task(task_name), rows.rows, PROTOCOL, rows.source)
    return list(encode_for(reader, examples, LONGEST, too_long="drop")[0])


def computed(batch: Batch) -> int:
    """Tokens that go through the model, padding included."""
    return batch.tokens_BS.numel() + (0 if batch.head_1H is None else batch.head_1H.numel())


def counts(batches: list[Batch]) -> dict[str, Any]:
    apart = [with_head(batch) for batch in batches]
    whole, shared = sum(map(computed, batches)), sum(map(computed, apart))
    heads = [0 if batch.head_1H is None else batch.head_1H.numel() for batch in apart]
    asked = sum(int((batch.labels_BS[:, 1:] != IGNORED).sum()) for batch in batches)
    idle = 1 - asked / whole
    return {
        "batches": len(batches), "batches_with_a_prefix": sum(head > 0 for head in heads),
        "tokens": whole, "tokens_with_share_prefix": shared,
        "saved": round(1 - shared / whole, 4), "prefix_tokens_median": statistics.median(heads),
        "places_before_a_target": round(1 - idle, 4),
        "last_block_saves_at_most": round(idle * NOT_KEYS / BLOCKS, 4),
    }  # fmt: skip


def timed(model: Any, batches: list[Batch]) -> dict[str, Any]:
    """One way and the other on each batch, the model and the optimizer put back in between."""
    method = METHODS["neuroada"].build()
    targets = find_targets(model, exclude=hub.default_exclude(model))
    method.attach(model, {name: choose(target.weight.detach(), 1) for name, target in targets.items()})
    optimizer = adamw(model, method, OptimSettings(lr=1e-3))
    model.train()
    logits_are_final(model, batches[0].tokens_BS)  # tried once, outside the times
    ratios, seconds, apart = [], {"plain": [], "shared": []}, 0.0
    for turn, batch in enumerate(batches):
        stats = {}
        for way in ("plain", "shared") if turn % 2 == 0 else ("shared", "plain"):
            given = with_head(batch) if way == "shared" else batch
            before = [parameter.detach().clone() for parameter in method.parameters(model)]
            state = copy.deepcopy(optimizer.state_dict())
            started = time.process_time()
            stats[way] = train_step(model, method, optimizer, [given], token_loss, turn)
            seconds[way].append(time.process_time() - started)
            if way == ("plain", "shared")[turn % 2]:  # the first way's step is taken back
                for parameter, value in zip(method.parameters(model), before, strict=True):
                    parameter.data.copy_(value)
                optimizer.load_state_dict(state)
                method.after_step(model)
        ratios.append(seconds["shared"][-1] / seconds["plain"][-1])
        apart = max(apart, abs(stats["shared"].loss / stats["plain"].loss - 1),
                    abs(stats["shared"].grad_norm / stats["plain"].grad_norm - 1))  # fmt: skip
        print(f"  {seconds['plain'][-1]:.1f} s, shared {seconds['shared'][-1]:.1f} s", flush=True)
    return {
        "steps": len(batches), "seconds_plain": [round(s, 2) for s in seconds["plain"]],
        "seconds_shared": [round(s, 2) for s in seconds["shared"]],
        "step_ratio": round(statistics.median(ratios), 3),
        "step_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "loss_or_gradient_norm_differs_by_at_most": float(f"{apart:.1e}"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="What a shared prefix saves in training.")
    parser.add_argument("--steps", type=int, default=2, help="timed batches of each set")
    parser.add_argument("--no-write", action="store_true", help="leave the result file alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = hub.resolve_model(MODEL)
    reader = hub.load_reader(folder, "causal-lm")
    found = []
    for name in SETS:
        rows, pad = encoded(name, reader), padding_for(reader)
        order = epoch_order([len(row) for row in rows], BATCH, SEED, 0)
        batches = [collate([rows[at] for at in batch], pad) for batch in order]
        row = {"what": name, "protocol": PROTOCOL, "batch": BATCH, **counts(batches)}
        print(json.dumps(row), flush=True)
        if given.steps:
            model = hub.load_model(folder, "causal-lm", "fp32").model
            model.model.layers, model.config.num_hidden_layers = model.model.layers[:TIMED], TIMED
            able = sorted((each for each in batches if with_head(each) is not each), key=computed)
            middling = able[len(able) // 2 :][: given.steps]
            row |= timed(model, middling)
        print(json.dumps(row), flush=True)
        found.append(row)
    if not given.no_write:
        files.write_json(RESULTS / "prefix.json", {"machine": machine(), "model": MODEL, "rows": found})


if __name__ == "__main__":
    main()
