"""Of docs/performance.md: what the CUDA kernels compile to for an H100, and what they take there on paper."""

# ruff: noqa: E501  (prose)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

COMMAND = "make bench-sm90"
LIMITS = {"memory": "memory", "l2": "L2", "shared": "shared memory", "issued": "instructions"}

INTRO = """
### Compiled for an H100

Of one program: registers of a thread, bytes of a thread that did not fit into them, shared memory, and how many programs
one multiprocessor holds at once. LLaMA-7B's 4096 x 4096, bf16.

"""

PAPER = """
What the gradient of all layers of one LLaMA-7B block takes at least, {tokens:,} tokens, by each limit of the device as
if there were no other: {memory:.2f} TB/s from memory, {l2:.1f} TB/s from L2, {banks} bytes of shared memory and
{issues} instructions per clock on {processors} multiprocessors of {ghz} GHz. The ratio is the largest of them over
forward and input gradient at {tflops:.0f} TFLOP/s ({floor:.1f} ms).

"""

SAID = """
- **K up to 4 is read by rows** (the default): it is bound by reading x and the gradients once. That the layers that
  read one x (q, k, v; gate, up) share one launch would save {saved:.1f} % of the floor at K=1 and nothing at K=20. It is not
  built: their gradients come one after the other, and two of them would have to be kept until the last.
- **Larger K is read by columns** (the default), bound by L2. Buckets (`triton_buckets`), for which connections between near
  neurons and near inputs are sorted together once, take {l2:.1f} instead of {columns_l2:.1f} ms of L2, and are then bound by looking
  up both sides of each connection in shared memory: {buckets:.2f} of the floor instead of {columns:.2f}. Neither is the
  {target} that is aimed at. Whether they are quicker a GPU has to say: `make bench-gpu` measures them beside the
  others, and its table, once taken over, chooses.
"""


def section(
    result: dict[str, Any] | None,
    markdown: Callable[[list[str], list[list[str]]], str],
    machine_line: Callable[[dict[str, Any], str], str],
) -> str:
    if result is None:
        return ""
    rows = [
        [name, str(made["registers"]), _bytes(made["spilled_bytes"]), _bytes(made["shared_bytes"]),
         f"{made['resident']} of {made['warps']} warps"]
        for name, made in result["kernels"].items()
    ]  # fmt: skip
    text = INTRO + markdown(["kernel", "registers", "spilled", "shared memory", "programs"], rows)
    device, paper = result["device"], result["paper"]
    text += PAPER.format(
        tokens=paper[0]["tokens"], memory=device["memory"] / 1e12, l2=device["l2"] / 1e12,
        banks=device["shared_per_clock"], issues=device["issues"], processors=device["multiprocessors"],
        ghz=device["hertz"] / 1e9, tflops=device["flops"] / 1e12, floor=1e3 * paper[0]["floor_seconds"],
    )  # fmt: skip
    cells = [
        [str(row["k"]), row["way"], *(f"{1e3 * row['limits_seconds'][name]:.2f} ms" for name in LIMITS),
         f"{row['at_least']:.3f}"]
        for row in paper
    ]  # fmt: skip
    text += markdown(["K", "way", *LIMITS.values(), "at least / floor"], cells)
    found = {(row["way"], row["k"]): row for row in paper}
    one, both = found["rows", 1], found["rows, siblings in one launch", 1]
    columns, buckets = found["columns", 20], found["buckets", 20]
    text += SAID.format(
        saved=100 * (one["at_least"] - both["at_least"]), l2=1e3 * buckets["limits_seconds"]["l2"],
        columns_l2=1e3 * columns["limits_seconds"]["l2"], buckets=buckets["at_least"],
        columns=columns["at_least"], target=0.12,
    )  # fmt: skip
    return text + machine_line(result["machine"], COMMAND)


def _bytes(count: int) -> str:
    return f"{count >> 10} KB" if count >= 1 << 10 else f"{count} B" if count else "–"
