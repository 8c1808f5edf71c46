"""docs/performance.md from the result files: every figure on that page comes from benchmarks/results/."""

# ruff: noqa: E501  (prose)

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import file_work
import sm90_page
import whole_commands

from neuroada_cli.commands.bench import NOISY
from neuroada_cli.show.numbers import size

Told = Callable[[dict[str, Any]], tuple[list[str], list[list[str]], str]]
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

INTRO = """# Speed and memory

<!-- written by `make bench-report` from benchmarks/results/*.json; edit docs/pages/performance_page.py instead -->

**The floor.** Whatever trains below the loss, a step has to run the forward pass and the gradients of the
layers' inputs. A frozen model with gradients down to its embeddings does exactly that and no more. Step times
here are ratios to this floor, taken in the same run: 1.05 means 5 % above what cannot be avoided.

**How time is measured.** All methods train on the same model, targets, batch, AdamW and training step (the one
that `neuroada train` runs). In every round each method takes one step, in an order that moves on by one per
round; a figure is the median over the rounds of (own time / the floor's time in that round), so a busy spell of
the machine hits all alike. On one CPU thread the clock is the processor's: what the step took of it, whatever else ran. Warm-up rounds are left out. The quartiles stand in brackets; a target
counts as met or missed only where both of them agree.

**How memory is measured.** One method at a time, the peak within one step: of live tensor bytes on the CPU, of
the allocator on a GPU. It splits into the weights, what the method adds (values, indices, masks, gradients,
optimizer moments) and activations. "Predicted" is what `train --dry-run` computes without weights.

**The peers.** `mask`: dense gradients and dense Adam on the target weights, masked to the chosen positions.
`scatter`: the same method as it is usually written, a dense `W + scatter(delta)` in every forward. `full`: all
parameters. `lora` (rank 8), `dora`, `shira` (its smallest size) and `supertuning` (as many entries as the
selection): from the PEFT library, adapters in the weights' data type, no dropout.
"""


def load(name: str) -> Any:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    aligned = "|".join(["---", *["---:"] * (len(headings) - 1)])
    lines = [f"| {' | '.join(headings)} |", f"|{aligned}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def machine_line(machine: dict[str, Any], command: str) -> str:
    vectors = f" with {machine['instructions']}" if "instructions" in machine else ""
    where = machine["gpu"] or f"{machine['cpu']}{vectors}, {machine['cores']} cores"
    load_now = "" if machine["gpu"] or machine["load"] is None else f", load {machine['load']}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"\n`{command}` on {machine['date']}: {where}{load_now}; {versions}.\n"


# ---------------------------------------------------------------------------------------------------
# Steps


def step_section(
    title: str, name: str, command: str, targets: dict[tuple[str, int | None], float] | None = None
) -> str:
    rows = load(name)
    if rows is None:
        return f"\n## {title}\n\nNot measured yet: run `{command}`.\n"
    if "failed" in rows[0]:
        return f"\n## {title}\n\nNo figures: {rows[0]['failed']}\n{machine_line(rows[0]['machine'], command)}"
    headings = ["method", "step / floor", "tokens/s", "trained", "peak", "added", "activations", "predicted"]
    if targets:
        headings.insert(2, "target")
    cells = []
    for row in rows:
        line = [
            _label(row),
            _ratio(row),
            f"{row['tokens_per_s']:,.0f}",
            f"{100 * row['trainable_share']:.3f} %",
        ]
        line += [size(row[key]) for key in ("peak_bytes", "state_bytes", "activation_bytes")]
        line.append(_prediction(row))
        if targets:
            line.insert(2, _verdict(row, targets))
        cells.append(line)
    text = f"\n## {title}\n\n{_setting(rows[0])}\n\n{markdown(headings, cells)}"
    text += _noise(rows)
    if any(row["largest_batch"] is not None for row in rows):
        text += f"\n{_budget(rows)}"
    return text + machine_line(rows[0]["machine"], command)


def _setting(row: dict[str, Any]) -> str:
    s = row["settings"]
    cut = "" if s["layers"] == s["of_layers"] else f", {s['layers']} of {s['of_layers']} blocks"
    return (
        f"Shape {s['model']}{cut} with random weights ({s['parameters'] / 1e6:,.0f} M parameters), {s['dtype']}, "
        f"{s['batch']} x {s['sequence']} tokens, {s['targets']} layers adapted, {s['rounds']} rounds. Weights: "
        f"{size(row['weights_bytes'])}."
    )


def _label(row: dict[str, Any]) -> str:
    name = row["method"] if row["k"] is None else f"{row['method']} K={row['k']}"
    return f"**{name}**" if row["method"] == "neuroada" else name


def _ratio(row: dict[str, Any]) -> str:
    if row["method"] == "floor":
        return "1"
    return f"{row['ratio_to_floor']:.3f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"


def _verdict(row: dict[str, Any], targets: dict[tuple[str, int | None], float]) -> str:
    limit = targets.get((row["method"], row["k"]))
    if limit is None:
        return ""
    missed = f"missed by {row['ratio_to_floor'] - limit:.3f}"
    settled = "met" if row["ratio_high"] <= limit else missed if row["ratio_low"] > limit else "not settled"
    return f"≤ {limit:.2f}: {settled}"


def _noise(rows: Sequence[dict[str, Any]]) -> str:
    """A warning where the rounds disagree by more than the differences that are looked for."""
    spreads = [row["ratio_high"] - row["ratio_low"] for row in rows if row["method"] == "neuroada"]
    impossible = any(row["ratio_to_floor"] < 1 for row in rows)
    if max(spreads) <= NOISY and not impossible:
        return ""
    return (
        "\n**The times of this run prove nothing**: other work took the processor, the rounds disagree by up to "
        f"{max(spreads):.2f} in the ratio of NeuroAda itself"
        f"{', and some ratios are below 1, which cannot be' if impossible else ''}. Memory is not affected. "
        "Run it again on a quiet machine.\n"
    )


def _prediction(row: dict[str, Any]) -> str:
    if row["predicted_bytes"] is None:
        return "–"
    off = round(100 * (row["predicted_bytes"] / row["peak_bytes"] - 1), 1)
    return f"{off:+.1f} %" if off else "0.0 %"


def _budget(rows: Sequence[dict[str, Any]]) -> str:
    budget = rows[0]["settings"]["memory_budget"]
    cells = [
        [
            _label(row),
            f"{row['largest_batch']:,}",
            f"{row['largest_batch_samples_per_s']:,.2f}" if row["largest_batch"] else "–",
        ]
        for row in rows
    ]
    return f"The largest batch within {size(budget)}:\n\n{markdown(['method', 'rows', 'samples/s'], cells)}"


# ---------------------------------------------------------------------------------------------------
# The op, files, the GPU's checks


def op_section(title: str, name: str, command: str) -> str:
    result = load(name)
    if result is None:
        return f"\n## {title}\n\nNot measured yet: run `{command}`.\n"
    names = sorted({backend for row in result["rows"] for backend in row["ratios"]})
    cells = [
        [
            row["kind"], f"{row['tokens']} x {row['inputs']} x {row['outputs']}", str(row["k"]),
            *(_backend(row, backend) for backend in names),
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return (
        f"\n## {title}\n\nThe gradient of the deltas of one layer, as a ratio to that layer's forward pass plus "
        "input gradient (T tokens x I inputs x O outputs). Bold is the fastest, which the tool takes for "
        "shapes like it; `dense_oracle` is the whole weight gradient, which full and mask-based training "
        f"pay.\n\n{markdown(['kind', 'T x I x O', 'K', *names], cells)}{machine_line(result['machine'], command)}"
    )


def _backend(row: dict[str, Any], name: str) -> str:
    if name not in row["ratios"]:
        return "–"
    text = f"{row['ratios'][name]:.3f}"
    return f"**{text}**" if name == row["fastest"] else text


def whole_section(title: str, name: str, command: str, told: Told) -> str:
    result = load(name)
    if result is None:
        return f"\n## {title}\n\nNot measured yet: run `{command}`.\n"
    headings, cells, said = told(result)
    return f"\n## {title}\n\n{said}\n\n{markdown(headings, cells)}{machine_line(result['machine'], command)}"


def gpu_section() -> str:
    about = load("gpu_run")
    command = "make bench-gpu"
    if about is None:
        return (
            "\n## On a GPU\n\nNot measured. The CUDA kernels are held to the oracle in Triton's interpreter, "
            "and compiled for an H100 (sm_90), where their loads are seen to be vectors; "
            f"`{command}` (one GPU, under nine minutes) checks, measures and tunes them.\n"
        ) + sm90_page.section(load("sm90"), markdown, machine_line)
    text = "\n## On a GPU: checks\n\n"
    checks = load("gpu_check")
    if checks is None or "rows" not in checks:
        text += "The check did not end.\n"
    else:
        errors = [row["error"] for row in checks["rows"] if row["error"] is not None]
        held = sum(row["ok"] for row in checks["rows"])
        text += f"{held} of {len(checks['rows'])} comparisons with the oracle hold; the largest relative "
        text += f"difference is {max(errors):.1e}.\n"
    text += machine_line(about["machine"], command)
    if about["left_out"]:
        text += f"\nLeft out for lack of time: {', '.join(about['left_out'])}.\n"
    targets = {("neuroada", 1): 1.05, ("neuroada", 20): 1.12}
    for name, title in GPU_STEPS.items():
        if load(f"step_gpu_{name}") is not None:
            wanted = targets if name in ("llama-7b", "llama-7b-8192") else None
            text += step_section(f"On a GPU: {title}", f"step_gpu_{name}", command, wanted)
    if load("op_cuda") is not None and "rows" in load("op_cuda"):
        text += op_section("On a GPU: the op", "op_cuda", command)
    return text + sm90_page.section(load("sm90"), markdown, machine_line)


GPU_STEPS = {
    "llama-7b": "LLaMA-7B",
    "llama-7b-8192": "LLaMA-7B, 8192 tokens",
    "llama-7b-budget": "LLaMA-7B, the largest batch",
    "llama-7b-mask": "LLaMA-7B, beside the mask-based method",
    "llama-7b-recipe": "LLaMA-7B, rows of a recipe, padded",
    "llama-7b-packed": "LLaMA-7B, rows of a recipe, packed",
    "llama-7b-unaligned": "LLaMA-7B, a number of tokens that is no multiple of 16",
    "llama-7b-checkpointing": "LLaMA-7B, gradient checkpointing",
    "llama3-8b": "Llama-3-8B",
    "llama-7b-nf4": "LLaMA-7B over nf4",
}


def rest_section() -> str:
    """What is above the floor, and how much of it the op explains."""
    op, lines = load("op_cpu"), []
    for name, title in (
        ("smollm2", "SmolLM2-135M's shape"),
        ("short", "10 of its blocks, 32 tokens"),
        ("short-bf16", "the same in bf16"),
        ("block", "one LLaMA-7B block"),
    ):
        rows = load(f"step_cpu_{name}") or []
        for row in rows:
            if row["method"] != "neuroada" or _noise(rows):
                continue
            above = 100 * (row["ratio_to_floor"] - 1)
            lines.append(f"- {title}, K={row['k']}: {above:+.1f} % over the floor")
    if not lines or op is None:
        return ""
    ratios = [(row, row["ratios"][row["fastest"]]) for row in op["rows"] if row["kind"] == "cpu float32"]
    parts = []
    for k in (1, 20):
        here = [ratio for row, ratio in ratios if row["k"] == k]
        if here:
            parts.append(f"{100 * min(here):.1f} to {100 * max(here):.1f} % at K={k}")
    return (
        "\n## Where the remaining time goes\n\n" + "\n".join(lines) + "\n\nThe op alone costs "
        f"{' and '.join(parts)} of its layer's forward and input gradient (fp32, CPU, by shape). Narrow layers pay most: reading and laying out g and x grows with I + O, "
        "the floor with I x O. The rest of a step above the floor is AdamW and clipping over the deltas, folding them in, and "
        "the Python around one more autograd node per layer. Attention, norms and the vocabulary's product "
        "belong to the floor and dilute all of it in a whole model. At 32 tokens that Python, the optimizer and the folding, "
        "which do not shrink with the batch, are nearly all of what is missed.\n"
    )


def page() -> str:
    smollm2 = {("neuroada", 1): 1.05, ("neuroada", 20): 1.10}
    width = {("neuroada", 1): 1.03, ("neuroada", 20): 1.05}
    short = {("neuroada", 1): 1.05, ("neuroada", 20): 1.10}
    block = {("neuroada", 20): 1.03}
    bf16 = {("neuroada", 1): 1.01, ("neuroada", 20): 1.02}
    cpu = "make bench-cpu"
    return "".join(
        [
            INTRO,
            step_section("A whole small model on the CPU", "step_cpu_smollm2", cpu, smollm2),
            step_section("Its width, bf16, on the CPU", "step_cpu_width-bf16", cpu, width),
            step_section("Short batches on the CPU, fp32", "step_cpu_short", cpu, short),
            step_section("Short batches on the CPU, bf16", "step_cpu_short-bf16", cpu, short),
            step_section("One LLaMA-7B block on the CPU, fp32", "step_cpu_block", cpu, block),
            step_section("One LLaMA-7B block on the CPU, bf16", "step_cpu_block-bf16", cpu, bf16),
            step_section("One Llama-3-8B block on the CPU, bf16", "step_cpu_gqa-bf16", cpu, bf16),
            whole_section(
                "16-bit models without 16-bit instructions", "narrow", "make bench-narrow", file_work.narrow
            ),
            op_section("The op on the CPU", "op_cpu", "make bench-op"),
            rest_section(),
            whole_section(
                "Folding, and answers without a gradient", "parts", "make bench-parts", file_work.parts
            ),
            whole_section("Rewriting K entries per row", "refold", "make bench-op", file_work.refold),
            whole_section("Files: select, merge, attach, switch", "io", "make bench-io", file_work.told),
            whole_section(
                "Before the work begins", "commands", "make bench-commands", whole_commands.before_work
            ),
            whole_section(
                "Beside another trainer", "beside_trl", "make bench-trl", whole_commands.beside_trl
            ),
            whole_section("Answers", "evaluation", "make bench-evaluation", whole_commands.answers),
            whole_section(
                "Below the floor: what rows share",
                "prefix",
                "make bench-prefix",
                whole_commands.shared_prefixes,
            ),
            gpu_section(),
        ]
    )
