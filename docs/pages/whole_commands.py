"""The parts of docs/performance.md about whole commands: before their work begins, and answers."""

# ruff: noqa: E501  (prose)

from __future__ import annotations

from typing import Any

# processor seconds; the targets stand in the same order as the results
BEFORE_WORK = {"validate": 1.0, "merge": 1.5, "select": 1.5, "train --dry-run": 6.0}
FLOOR, MODELS = "import torch", "import torch, and transformers' model code"


def before_work(result: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """(headings, rows, what is to be said of them)."""
    seconds = {row["what"]: row["processor_seconds"] for row in result["rows"]}
    cells = [
        [name, f"{seconds[name]:.1f} s", _verdict(seconds[name], BEFORE_WORK.get(name))] for name in seconds
    ]
    two, four = seconds["train, 2 steps"], seconds["train, 4 steps"]
    around = two - max(0.0, four - two)
    cells.append(["train around its loop", f"{around:.1f} s", _verdict(around, 6.0)])
    said = (
        "SmolLM2-135M, K=1, 64 rows that the package makes; whole processes, one thread, what they take of the "
        "processor. `train` around its loop is the run of 2 steps less what the 2 more steps of the other take. "
        f"The floor of every command that touches weights is `{FLOOR}`: {seconds[FLOOR]:.1f} s; whoever reads text adds "
        "`transformers`' tokenizers. Its config classes bring torch's compiler and distributed tensors along: with them and "
        f"the code of a model it is {seconds[MODELS]:.1f} s. They are asked once: what a config says (kind of model, module graph, class of the "
        "tokenizer) is kept in the cache folder, so `validate`, `select` and `merge` of a model that was seen before, as here, do without. "
        "A dry run steps through the model and needs its code; a run adds its selection, folder and picture."
    )
    return ["command", "processor", "target"], cells, said


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
        ]
        for row in result["rows"]
    ]  # fmt: skip
    said = (
        f"{result['model']}, fp32, batches of {result['rows'][0]['batch']}, against the library's `generate` on the same "
        "length-sorted batches. A prefix that a batch's prompts share is computed once, and a row leaves when it "
        "ends. Without worked examples in front, most of a multiple-choice prompt is its own question, whose tokens "
        "both ways compute alike; and where a quarter of the rows writes to the limit, few leave early."
    )
    headings = [
        "what",
        "prompt tokens",
        "written, quartiles",
        "rows/s over plain",
        "target",
        "texts that differ",
    ]
    return headings, cells, said
