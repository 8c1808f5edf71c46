"""Rows per second of `eval`'s decoding against the library's plain `generate` on the same sorted batches.

    NEUROADA_DATA=folder python benchmarks/evaluation.py    # rewrites benchmarks/results/evaluation.json

One model (SmolLM2-135M, fp32), one process, one thread, timed by what it takes of the processor; both ways
take turns. The texts are compared, and how many differ is a part of the result (0 is what must be). Counted
are the tokens that each way puts through the model, and those that have to be: every beginning that prompts
share once, and what is written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common import RESULTS

from neuroada_cli import files, hub
from neuroada_cli.data.inputs import prompts_for
from neuroada_cli.data.sources import load_rows
from neuroada_cli.evaluation import generate as generating
from neuroada_cli.machine.load import machine
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.tasks.task import examples_of

MODEL, PROTOCOL, BATCH = "smollm2-135m", "llm-adapters", 16
# what -> task, rows, most new tokens, worked examples before each prompt
WORK: dict[str, tuple[str, int, int, int]] = {
    "multiple choice, answers of 8 tokens": ("ARC-Easy", 32, 8, 0),
    "multiple choice behind 5 worked examples": ("ARC-Easy", 16, 8, 5),
    "open answers of very different lengths": ("gsm8k", 16, 128, 0),
}


@contextmanager
def plainly() -> Iterator[None]:
    """Inside, every batch goes through the library's `generate`."""
    own = generating.can_leave
    generating.can_leave = lambda _: False
    try:
        yield
    finally:
        generating.can_leave = own


def prompts_of(task_name: str, count: int, shots: int, reader: hub.Reader) -> list[list[int]]:
    task = get_task(task_name)
    rows = load_rows(task.sets["test"], "test")
    examples = examples_of(task, rows.rows[: count + shots], PROTOCOL, rows.source)
    before = [f"{each.prompt}{each.target}\n\n" for each in examples[:shots]]
    head = reader.tokenizer("".join(before), add_special_tokens=False)["input_ids"] if shots else []
    return [head + row.input_ids for row in prompts_for(reader, examples[shots:], task.published)]


@contextmanager
def counting(model: Any) -> Iterator[list[int]]:
    """Inside, filled with how many tokens, padding included, each pass takes."""
    seen: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def needed(prompts: list[list[int]], written: list[int]) -> int:
    """Tokens that have to go through the model: each beginning once, and what is written but its last."""
    beginnings = {tuple(prompt[:at]) for prompt in prompts for at in range(1, len(prompt) + 1)}
    return len(beginnings) + sum(max(0, count - 1) for count in written)


def measured(what: str, model: Any, reader: hub.Reader, rounds: int) -> dict[str, Any]:
    task, count, most, shots = WORK[what]
    prompts = prompts_of(task, count, shots, reader)

    def once() -> tuple[float, list[str]]:
        started = time.process_time()
        texts = generating.generate(model, reader.tokenizer, prompts, most, BATCH, special=True)
        return time.process_time() - started, texts

    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    passes, tokens = dict[str, int](), dict[str, int]()
    for turn in range(rounds):
        for name in ("ours", "plain") if turn % 2 == 0 else ("plain", "ours"):
            with counting(model) as seen:
                if name == "ours":
                    taken, texts = once()
                else:
                    with plainly():
                        taken, plain = once()
            seconds[name].append(taken)
            passes[name], tokens[name] = len(seen), sum(seen)
        print(f"  {what}: {seconds['ours'][-1]:.1f} s, plain {seconds['plain'][-1]:.1f} s", flush=True)
    written = [len(reader.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    pairs = zip(seconds["plain"], seconds["ours"], strict=True)
    return {
        "what": what, "task": task, "rows": count, "batch": BATCH, "max_new_tokens": most, "shots": shots,
        "prompt_tokens_median": statistics.median(map(len, prompts)),
        "written_tokens_quartiles": statistics.quantiles(written, n=4),
        "rows_per_processor_s": round(count / statistics.median(seconds["ours"]), 3),
        "passes": passes, "tokens": tokens | {"needed": needed(prompts, written)},
        "speed_over_plain": round(statistics.median(theirs / ours for theirs, ours in pairs), 3),
        "texts_that_differ": sum(a != b for a, b in zip(texts, plain, strict=True)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="eval's decoding against the library's plain generate.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-write", action="store_true", help="leave the result file alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = hub.resolve_model(MODEL)
    model = hub.load_model(folder, "causal-lm", "fp32").model
    reader = hub.load_reader(folder, "causal-lm")
    rows = [measured(what, model, reader, given.rounds) for what in WORK]
    for row in rows:
        print(json.dumps(row))
    if not given.no_write:
        files.write_json(RESULTS / "evaluation.json", {"machine": machine(), "model": MODEL, "rows": rows})


if __name__ == "__main__":
    main()
