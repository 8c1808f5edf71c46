"""The parts of docs/performance.md about whole commands: before their work begins, and answers."""

# ruff: noqa: E501  (prose)

from __future__ import annotations

from typing import Any

import file_work

from neuroada_cli.show.numbers import size

# processor seconds; the targets stand in the same order as the results
BEFORE_WORK = {"validate": 1.0, "merge": 1.5, "select": 1.5, "train --dry-run": 6.0}
FLOOR, MODELS = "import torch", "import torch, and transformers' model code"
ONE, FOUR = "bench --suite, 1 run", "bench --suite, 4 runs"


def before_work(result: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """(headings, rows, what is to be said of them)."""
    seconds = {row["what"]: row["processor_seconds"] for row in result["rows"]}
    cells = [
        [
            name,
            f"{seconds[name]:.1f} s",
            f"{seconds[name] / seconds[FLOOR]:.1f}",
            _verdict(seconds[name], BEFORE_WORK.get(name)),
        ]
        for name in seconds
    ]
    two, four = seconds["train, 2 steps"], seconds["train, 4 steps"]
    around = two - max(0.0, four - two)
    cells.append(
        ["train around its loop", f"{around:.1f} s", f"{around / seconds[FLOOR]:.1f}", _verdict(around, 6.0)]
    )
    if ONE in seconds:  # a result file of before has none
        more = (seconds[FOUR] - seconds[ONE]) / 3
        cells.append(["each further run of a suite", f"{more:.1f} s", f"{more / seconds[FLOOR]:.1f}", ""])
    said = (
        "SmolLM2-135M, K=1, 64 rows that the package makes; whole processes, one thread, what they take of the "
        "processor, also in units of what importing torch took in the same run (other work on the machine lengthens both). `train` around its loop is the run of 2 steps less what the 2 more steps of the other take; two "
        "evaluations of 16 rows are in it. What a config says (kind of model, module graph, class of the tokenizer), what a "
        "base's folder carries along and what a dry run found (memory for good, time for a day) is asked once and kept in the "
        "cache folder, so that `validate`, `select`, `merge` and a second dry run do without the code of the model.\n\n"
        "While a command starts, Python's collector of cycles comes rarely, and at its end what was imported is not taken apart "
        f"object by object, which is in the time of `{FLOOR}`. What is missed is missed by imports: that takes "
        f"{seconds[FLOOR]:.1f} s, and its tensors are what choosing, "
        "folding and the module graph are made of here; `transformers`' tokenizers come on top, as importing that package reads "
        "the sources of all its models; with a model's own code, which brings torch's compiler and distributed tensors along, it "
        f"is {seconds[MODELS]:.1f} s. On top of that a run draws its picture and its report, for which it imports matplotlib. "
        "The runs of a suite (2 steps each here, on a CPU) import all of it once: a process that has done so forks one for each."
        + file_work.busy(result["machine"])
    )
    return ["command", "processor", f"of `{FLOOR}`", "target"], cells, said


def _verdict(seconds: float, target: float | None) -> str:
    if target is None:
        return ""
    over = "" if seconds <= target else f", by {seconds - target:.1f} s"
    return f"≤ {target:g} s: {'met' if seconds <= target else 'missed'}{over}"


def answers(result: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """(headings, rows, what is to be said of them)."""
    cells = [
        [
            row["what"], f"{row['prompt_tokens_median']:.0f}",
            " – ".join(f"{n:.0f}" for n in row["written_tokens_quartiles"][::2]),
            f"{row['speed_over_plain']:.2f} x",
            "≥ 2: met" if row["speed_over_plain"] >= 2 else f"≥ 2: missed by {2 - row['speed_over_plain']:.2f}",
            f"{row['texts_that_differ']} of {row['rows']}",
            f"{row['tokens']['plain'] / row['tokens']['ours']:.2f} x",
            f"{row['tokens']['plain'] / row['tokens']['needed']:.2f} x",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    said = (
        f"{result['model']}, fp32, batches of {result['rows'][0]['batch']}, against the library's `generate` on the same "
        "length-sorted batches. What prompts share is computed once and kept for later batches, prompts of a length are "
        "read together, a row leaves when it ends, and what a text goes on with is looked up where its last three tokens "
        "stood before: several such guesses are asked in one pass and kept where each is the most likely token. The last two "
        "columns count tokens: how many fewer, padding included, go through the model than by plain `generate`, and how many "
        "fewer could at best, were every shared beginning computed once and every written token once, without padding. "
        "Where that bound is below 2, so is what can be had on a processor whose time goes with the tokens: without worked "
        "examples in front, most of a multiple-choice prompt is its own question. Where long answers are written one "
        "token at a time, each pass also reads all weights, whatever the number of rows that are left in it."
    )
    headings = [
        "what",
        "prompt tokens",
        "written, quartiles",
        "rows/s over plain",
        "target",
        "texts that differ",
        "fewer tokens",
        "at best",
    ]
    return headings, cells, said


def shared_prefixes(result: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """(headings, rows, what is to be said of them)."""
    cells = [
        [
            row["what"],
            f"{row['batches_with_a_prefix']:,} of {row['batches']:,}",
            f"{row['saved']:.1%}",
            f"{row['step_ratio']:.3f} ({row['step_ratio_range'][0]:.2f}–{row['step_ratio_range'][1]:.2f})",
            f"{row['loss_or_gradient_norm_differs_by_at_most']:.0e}",
            f"{row['last_block_saves_at_most']:.1%}",
        ]
        for row in result["rows"]
    ]
    first = result["rows"][0]
    said = (
        f"Batches of {first['batch']} rows of similar length, protocol {first['protocol']}. `train.share_prefix: true` "
        "computes what all rows of a micro-batch begin with, and do not learn, once. Rows of commonsense15k have no "
        "instruction around them there, so those of one batch rarely begin alike; math10k's share a template of 24 tokens. "
        f"Step times are of {first['steps']} batches that have a prefix, on 10 of SmolLM2-135M's blocks. It is an option, off by itself: what it saves is "
        "small on these sets, and it excludes dropout, packing and recomputing; long prompts in common (worked "
        "examples, a system prompt) are what it is for. A last block that worked out queries, MLP and output only where a "
        "target follows would save at most the share of a step in the last column on a model of 30 blocks, and would need "
        "code for every family's block: it is not built. Blocks below the lowest adapted layer get no backward pass; a "
        "test holds that."
    )
    headings = [
        "rows", "batches with a prefix", "tokens saved, whole epoch", "step time with / without",
        "loss and gradient norm differ by", "last block, at most",
    ]  # fmt: skip
    return headings, cells, said


def beside_trl(result: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """(headings, rows, what is to be said of them)."""
    theirs = next(row for row in result["rows"] if "as it comes" in row["what"])
    cells = []
    for row in result["rows"]:
        step, memory = (row[key] / theirs[key] for key in ("step_seconds", "resident_bytes"))
        ours = row["what"].startswith("neuroada")
        cells.append(
            [
                row["what"], f"{row['step_seconds']:.2f} s", f"{step:.2f}", _ratio(step, 0.35) if ours else "",
                size(row["resident_bytes"]), f"{memory:.2f}", _ratio(memory, 0.55) if ours else "",
                f"{row['around_seconds']:.1f} s",
            ]
        )  # fmt: skip
    said = (
        "Whole trainings of SmolLM2-135M, fp32, 4 rows a step, the same rows: seconds of the processor per step, the largest "
        "resident set, and what surrounds the steps; ratios to TRL's `SFTTrainer` with LoRA r8 as it comes, which computes every "
        "forward pass twice (gradient checkpointing) to save memory. Both hold the weights in fp32 and much the same libraries, "
        "and ours keeps the activations that TRL computes again, which is what the memory misses by; and no step falls below the "
        "frozen model's own forward and backward pass, which is nearly all of ours."
    )
    headings = ["training", "per step", "of TRL's", "target", "memory", "of TRL's", "target", "around"]
    return headings, cells, said


def _ratio(found: float, most: float) -> str:
    return f"≤ {most:g}: {'met' if found <= most else f'missed by {found - most:.2f}'}"
