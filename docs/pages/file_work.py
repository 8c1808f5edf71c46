"""The parts of docs/performance.md about files, and about parts of a step that are measured by themselves."""

# ruff: noqa: E501  (prose)

from __future__ import annotations

from typing import Any

from neuroada_cli.show.numbers import size

Table = tuple[list[str], list[list[str]], str]
SELECT = {"select_1": (1, 1.1), "select": (20, 2.0), "select_64": (64, 4.0)}  # what: (K, at most)


def told(result: dict[str, Any]) -> Table:
    """(headings, rows, what is to be said of them)."""
    cells = []
    for row in result["rows"]:
        if row["what"] == "attach":
            cells += _attached(row)
        elif row["what"].startswith("select"):
            cells.append(_select(row))
        elif row["what"] == "merge":
            cells.append(
                [f"merge alone, {size(row['bytes'])}", f"{size(row['merge_bytes_per_s'])}/s",
                 f"{row['speed_over_cp']:.2f} x the speed of cp, {row['speed_over_cp_flushed']:.2f} x with its files flushed",
                 _at_least(row["speed_over_cp"], 0.5), size(row["peak_anonymous_bytes"])]
            )  # fmt: skip
        else:
            for peer, what, most in (("cp", "cp", 2.0), ("cp_flushed", "cp, flushed to disk", 1.1)):
                ratio, seconds = row[f"time_over_{peer}"], row[f"{peer}_seconds"]
                cells.append(
                    [f"merge, the whole command, {size(row['bytes'])}", f"{row['merge_seconds']:.1f} s, {row['merge_processor_seconds']:.1f} s of the processor",
                     f"{ratio:.2f} x the time of {what} ({seconds:.1f} s)", _at_most(ratio, most), ""]
                )  # fmt: skip
    said = (
        "bf16 models in four shards, made on the spot. `select` is compared with a plain read of the files by what both take of "
        "the processor; `merge` with `cp -r` on the wall, by itself and as the whole command with the start of Python and torch. "
        "Memory is what the command adds to its process at its peak, file pages of the system's cache left out. `merge` writes, "
        "hashes and flushes every file before it puts the folder in its place. Files of 128 MB and more go past the system's cache "
        "where that can be, while the next tensors are folded and the last ones hashed: where memory for the cache has to be found "
        "first, as for a large model on a virtual machine, `cp`, which goes through it, takes longer. How long goes with what came before "
        "it, which is why here it may take longer than with its files flushed. What remains is the start "
        "of Python and torch, which a small model does not make up for. Attaching reads and writes K entries of every neuron and switching writes "
        "them: each lies in a line of memory of its own, 64 bytes for one number of two, and fetching lines ahead of time gains "
        "nothing, so at K=20 it is this traffic that misses the target, not what is computed."
        + busy(result["machine"])
    )
    return ["what", "speed or time", "against", "target", "memory"], cells, said


def _select(row: dict[str, Any]) -> list[str]:
    k, most = SELECT[row["what"]]
    speed = f"{size(row[row['what'] + '_bytes_per_s'])}/s"
    if row["cache"] == "cold":
        ratio = row["speed_over_read"]
        against, verdict = f"{ratio:.2f} x the speed of reading", _at_least(ratio, 0.5)
    else:
        ratio = row["processor_over_read"]
        against, verdict = f"{ratio:.2f} x the processor's time of reading", _at_most(ratio, most)
    return [f"select K={k}, {row['cache']} cache", speed, against, verdict, size(row["peak_anonymous_bytes"])]


def _attached(row: dict[str, Any]) -> list[list[str]]:
    cells = []
    for what, most in (("attach", 0.01), ("switch", 0.005)):
        share, seconds = row[f"{what}_over_load"], row[f"{what}_seconds"]
        verdict = "met" if share <= most else f"missed by {100 * (share - most):.1f} %"
        against = f"{100 * share:.1f} % of loading ({row['load_seconds']:.2f} s of the processor)"
        cells.append(
            [
                f"{what} an adapter (K={row['k']})",
                f"{seconds:.3f} s",
                against,
                f"≤ {100 * most:g} %: {verdict}",
                "",
            ]
        )
    return cells


def _at_least(found: float, wanted: float) -> str:
    return f"≥ {wanted:g}: {'met' if found >= wanted else f'missed by {wanted - found:.2f}'}"


def _at_most(found: float, wanted: float) -> str:
    return f"≤ {wanted:g}: {'met' if found <= wanted else f'missed by {found - wanted:.2f}'}"


def parts(result: dict[str, Any]) -> Table:
    """(headings, rows, what is to be said of them)."""
    cells = [
        [
            row["what"], f"{1000 * row['floor_seconds']:.0f} ms", f"{1000 * row['above_seconds']:.1f} ms",
            f"{1000 * row['refold_seconds']:.1f} ms",
            f"{100 * row['refold_share_of_above']:.0f} %", _at_most(100 * row["refold_share_of_above"], 5),
            f"{row['forward_over_plain']:.3f} ({row['forward_low']:.2f}–{row['forward_high']:.2f})",
            _settled(row, 1.01),
        ]
        for row in result["rows"]
    ]  # fmt: skip
    said = (
        "SmolLM2's width, 10 blocks, K=20. What a step takes above the floor, and of that what writing the folded entries into "
        "the weights takes; then a forward pass of 4 rows of one token without gradients, deltas attached, over the plain "
        "model's. Each entry that is written lies in a line of memory of its own (64 bytes in and out for one number): folding "
        "is bound by this traffic, and its share rises as the rest of what lies above the floor gets cheaper."
    )
    headings = ["step", "floor", "above it", "folding", "its share", "target, %", "forward / plain", "target"]
    return headings, cells, said


def narrow(result: dict[str, Any]) -> Table:
    """(headings, rows, what is to be said of them)."""
    cells = [
        [
            row["dtype"], way, f"{1000 * row[way]['step_seconds']:.0f} ms", f"{row[way]['step_over_fp32']:.2f}",
            f"{row[way]['forward_over_fp32']:.2f}",
        ]
        for row in result["rows"]
        for way in ("fp32", "as torch computes it", "by way of fp32")
        if way in row
    ]  # fmt: skip
    first = result["rows"][0]
    said = (
        "On x86, torch multiplies bf16 quickly with AVX-512 and fp16 with its fp16 instructions only; on other processors, most "
        "desktops and laptops among them, it goes number by number, slowest for the gradient of a layer's inputs. There the "
        "operands are widened to fp32 tile by tile and each result is rounded once, so that the weights stay 16 bits wide: "
        "nothing has to be set. SmolLM2's width, 2 blocks and the vocabulary's product, K=20: a step of "
        f"{first['batch']} x {first['tokens']} tokens, and 4 rows of one token passed forward, over the same in fp32."
    )
    return ["weights", "products", "step", "over fp32", "forward, over fp32"], cells, said


def _settled(row: dict[str, Any], most: float) -> str:
    """Whether both quartiles agree."""
    if row["forward_low"] <= most < row["forward_high"]:
        return f"≤ {most:g}: not settled"
    return _at_most(row["forward_over_plain"], most)


def busy(machine: dict[str, Any]) -> str:
    """What is to be said of times on the wall where other work took the processor."""
    if machine["load"] is None or machine["load"] <= machine["cores"]:
        return ""
    return (
        f" **Other work took the processor in this run** (load {machine['load']:.0f} on {machine['cores']} cores): what is "
        "measured on the wall says little, and the processor's seconds are longer, too."
    )


def refold(result: dict[str, Any]) -> Table:
    """(headings, rows, what is to be said of them)."""
    names = list(result["rows"][0]["milliseconds"])
    cells = [
        [
            f"{row['dtype']} {row['outputs']} x {row['inputs']}", str(row["k"]),
            *(f"{row['milliseconds'][name]:.3f}" for name in names if name in row["milliseconds"]),
        ]
        for row in result["rows"]
    ]  # fmt: skip
    said = "Milliseconds on one layer; `kernel` is what folding uses, the others are torch's ways."
    return ["weight", "K", *names], cells, said
