"""What the CUDA kernels compile to for an H100 (sm_90), and what they move there on paper; needs no GPU.

    python benchmarks/sm90.py           # rewrites benchmarks/results/sm90.json
    python benchmarks/sm90.py --show    # one JSON object on standard output, nothing is written

Registers, spilled bytes and shared memory are the assembler's own figures; instructions are counted in what
it wrote. On paper each way of the sampled gradient is held to four limits of the device, each as if the
others were not there: reading from memory, from L2, looking up in shared memory, issuing instructions. The
largest is what it takes at least.

O = output neurons, I = inputs, K = chosen inputs per neuron, T = tokens
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import RESULTS

from neuroada_cli import files
from neuroada_cli.delta import triton_buckets
from neuroada_cli.delta.triton_grad import (
    PACK,
    ROW_WARPS,
    ROWS_MOST_K,
    SUMS,
    TILE,
    TILE_T,
    power_of_2,
    unrolled,
)
from neuroada_cli.machine.load import machine
from neuroada_cli.selection.criteria import choose

# An H100 SXM, as its maker states it but for the product, which is what torch reaches on it in bf16
H100 = {
    "multiprocessors": 132, "hertz": 1.7e9, "memory": 3.35e12, "l2": 5.5e12, "flops": 7e14,
    "registers": 1 << 16, "threads": 2048, "shared": 227 << 10, "shared_per_clock": 128, "issues": 4,
}  # fmt: skip
TOKENS = 8192
# LLaMA-7B's block: layers that read the same x stand together, each (I, O)
BLOCK = (((4096, 4096),) * 3, ((4096, 4096),), ((4096, 11008),) * 2, ((11008, 4096),))
BANKS = 16  # of 64 bits
KS = (1, 4, 20)
ODD = ("tokens", "blocks", "steps", "layers")  # never multiples of 16 that the compiler may build upon
POINTERS = {
    "g_ptr": "*bf16", "xt_ptr": "*bf16", "x_ptr": "*bf16", "index_ptr": "*i32", "out_ptr": "*fp32",
    "slot_ptr": "*i32", "first_ptr": "*i32", "table_ptr": "*i64", "settings_ptr": "*fp64",
    "norm_ptr": "*fp32",
}  # fmt: skip


def compiled(kernel: Any, **options: Any) -> dict[str, Any]:
    """What a kernel compiles to: `options` are its constants, `num_warps` and `maxnreg`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    constants = {(names.index(n),): v for n, v in options.items() if n in names}
    signature = {n: POINTERS.get(n, "i32") for n in names if n not in options}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in signature if n not in ODD}
    signature |= {n: "constexpr" for n in names if n in options}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    given = {n: v for n, v in options.items() if n not in names}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=given)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(made.asm["cubin"])
        cubin.flush()
        usage = _said(tools / "cuobjdump", "-res-usage", cubin.name)
        loops = _loops(_said(tools / "nvdisasm", "-c", cubin.name))
    registers, stack = (int(re.findall(rf"{word}:(\d+)", usage)[-1]) for word in ("REG", "STACK"))
    warps, shared = options.get("num_warps", 4), int(made.metadata.shared)
    ptx = collections.Counter(re.findall(r"^\s+(?:@%p\d+ )?([a-z][\w.]*\.[\w.]+)", made.asm["ptx"], re.M))
    return {
        "registers": registers, "spilled_bytes": stack, "shared_bytes": shared, "warps": warps,
        "resident": resident(registers, shared, warps), "loops": loops, "ptx": dict(ptx),
    }  # fmt: skip


def _said(*command: Any) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def resident(registers: int, shared: int, warps: int) -> int:
    """Programs that one multiprocessor holds at once."""
    rounded = -(-registers // 8) * 8  # registers are given out in eights, per thread
    by_registers = H100["registers"] // (rounded * 32 * warps)
    by_shared = H100["shared"] // (shared + (1 << 10))
    return int(min(by_registers, H100["threads"] // (32 * warps), by_shared))


def _loops(assembly: str) -> list[int]:
    """Instructions of each loop, shortest first."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_[\w.]+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.search(r"/\*[0-9a-f]{4,5}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    found = []
    for at, instruction in enumerate(instructions):
        jump = re.search(r"BRA.*\(\.?(\.L_[\w.]+)\)", instruction)
        if jump and labels.get(jump[1], at) < at:
            found.append(at - labels[jump[1]] + 1)
    return sorted(found)


def kernels() -> dict[str, dict[str, Any]]:
    """All of them, as LLaMA-7B's layers of 4096 x 4096 call them."""
    from neuroada_cli.delta import triton_kernels as own

    made = {"transpose": compiled(own.transpose_kernel, BLOCK_T=128, BLOCK_I=64)}
    for k in KS:
        block_k = min(power_of_2(k), ROWS_MOST_K)
        made[f"columns K={k}"] = compiled(
            own.columns_kernel, K=k, K_PAD=power_of_2(k), UNROLL=unrolled(k), BLOCK_O=TILE.neurons,
            LANE_T=TILE_T // 2, num_warps=TILE.warps, maxnreg=TILE.registers,
        )  # fmt: skip
        made[f"rows K={k}"] = compiled(
            own.rows_kernel, K=k, BLOCK_K=block_k, BLOCK_O=SUMS // max(2, block_k), BLOCK_I=4096, PACK=PACK,
            num_warps=ROW_WARPS,
        )  # fmt: skip
    made["buckets K=20"] = compiled(
        own.buckets_kernel, K=20, SLOTS=triton_buckets.SLOTS, BLOCK_O=triton_buckets.BLOCK_O,
        BLOCK_I=triton_buckets.block_inputs(20, 4096), PACK=PACK, num_warps=triton_buckets.WARPS,
    )  # fmt: skip
    made["update"] = compiled(
        own.update_kernel, UPDATES=True, CLIPS=True, WEIGHT=own.TYPES[torch.bfloat16], BLOCK=1024, num_warps=4
    )
    return made


def collisions(slots_LN: torch.Tensor) -> float:
    """How many turns a look-up of 16 lanes takes in the mean: the most different words of any bank.

    slots_LN  the words that the lanes of each look-up ask for; -1 for none
    """
    turns_L = torch.zeros(len(slots_LN))
    for bank in range(BANKS):
        here_LN = torch.where((slots_LN >= 0) & (slots_LN % BANKS == bank), slots_LN, -1).sort(dim=1).values
        new_LN = torch.ones_like(here_LN, dtype=torch.bool)
        new_LN[:, 1:] = here_LN[:, 1:] != here_LN[:, :-1]
        turns_L = torch.maximum(turns_L, (new_LN & (here_LN >= 0)).sum(dim=1).float())
    return float(turns_L.mean())


@functools.cache
def index(inputs: int, outputs: int, k: int) -> torch.Tensor:
    """Chosen from random weights with inputs that stand out, as real ones have."""
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(outputs, inputs, generator=generator)
    return choose(weight_OI * (1 + torch.randn(inputs, generator=generator).abs()), k)


def paper(made: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each way that there is for a K: milliseconds of a LLaMA-7B block, by each limit alone."""
    weights = sum(inputs * outputs for group in BLOCK for inputs, outputs in group)
    floor = 4 * TOKENS * weights / H100["flops"]
    found = []
    for k in KS:
        ways = [(columns, False), (rows, False), (rows, True)] + (
            [(buckets, False)] if k > ROWS_MOST_K else []
        )
        for way, together in ways:
            limits = collections.Counter()
            for group in BLOCK:
                limits.update(way(group, k, made, together))
            name = way.__name__ + (", siblings in one launch" if together else "")
            seconds = dict(limits)
            found.append(
                {"way": name, "k": k, "tokens": TOKENS, "floor_seconds": floor, "limits_seconds": seconds,
                 "at_least": max(seconds.values()) / floor}
            )  # fmt: skip
    return found


Group = Sequence[tuple[int, int]]


def columns(group: Group, k: int, made: dict[str, Any], together: bool) -> dict[str, float]:
    inputs, neurons = group[0][0], sum(outputs for _, outputs in group)
    gathered, gradients = neurons * k * TOKENS * 2, neurons * TOKENS * 2
    transposed = 2 * TOKENS * inputs * 2
    kernel = made[f"columns K={k}"]
    turns = neurons / TILE.neurons * (TOKENS / TILE_T) * k / unrolled(k)
    return _limits(gradients + transposed + TOKENS * inputs * 2, gathered + gradients, 0, turns, kernel)


def rows(group: Group, k: int, made: dict[str, Any], together: bool) -> dict[str, float]:
    inputs = group[0][0]
    block_k = min(power_of_2(k), ROWS_MOST_K)
    over_k = -(-k // block_k)
    programs = sum(-(-outputs // (SUMS // max(2, block_k))) for _, outputs in group) * over_k
    neurons = sum(outputs for _, outputs in group)
    from_l2 = (programs * inputs + over_k * neurons) * TOKENS * 2
    memory = ((1 if together else len(group)) * inputs + neurons) * TOKENS * 2
    sums = SUMS // max(2, block_k) * block_k
    lookups = index(inputs, group[0][1], k)[: sums // block_k].T.reshape(-1, BANKS).long()
    clocks = (power_of_2(inputs) + sums * collisions(lookups)) * 8 / H100["shared_per_clock"]
    turns = programs * TOKENS / PACK
    return _limits(memory, from_l2, turns * clocks, turns, made[f"rows K={k}"])


def buckets(group: Group, k: int, made: dict[str, Any], together: bool) -> dict[str, float]:
    inputs, outputs = group[0]
    kept = triton_buckets.bucketed(index(inputs, outputs, k), inputs)
    programs, slots = kept.slot_BN.shape
    tile = kept.block_i + triton_buckets.BLOCK_O
    lane = triton_buckets.TOGETHER
    asked = kept.slot_BN.long().view(programs, -1, BANKS, lane).transpose(2, 3).reshape(-1, BANKS)
    side_i = torch.where(asked >= 0, asked % kept.block_i, -1)
    side_o = torch.where(asked >= 0, asked // kept.block_i % triton_buckets.BLOCK_O, -1)
    lookups = slots * (collisions(side_i) + collisions(side_o))
    clocks = (tile + lookups) * 8 / H100["shared_per_clock"]
    turns = len(group) * programs * TOKENS / PACK
    memory = len(group) * (inputs + outputs) * TOKENS * 2
    from_l2 = len(group) * programs * tile * TOKENS * 2
    return _limits(memory, from_l2, turns * clocks, turns, made["buckets K=20"])


def _limits(
    memory: float, from_l2: float, clocks: float, turns: float, kernel: dict[str, Any]
) -> dict[str, float]:
    """Bytes, clocks of shared memory and turns of the inner loop of all programs, as seconds."""
    clock = H100["multiprocessors"] * H100["hertz"]
    issued = turns * kernel["loops"][0] * kernel["warps"] / H100["issues"]
    return {
        "memory": memory / H100["memory"], "l2": from_l2 / H100["l2"], "shared": clocks / clock,
        "issued": issued / clock,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="The CUDA kernels, compiled for an H100 without one.")
    parser.add_argument("--show", action="store_true", help="print the kernels as JSON and write nothing")
    given = parser.parse_args()
    made = kernels()
    if given.show:
        print(json.dumps(made))
        return
    rows_ = paper(made)
    for row in rows_:
        limits = "  ".join(f"{name} {1e3 * s:.2f} ms" for name, s in row["limits_seconds"].items())
        print(f"K={row['k']:<3} {row['way']:30} {limits}  at least {row['at_least']:.3f}", flush=True)
    files.write_json(
        RESULTS / "sm90.json", {"machine": machine(), "device": H100, "kernels": made, "paper": rows_}
    )


if __name__ == "__main__":
    main()
