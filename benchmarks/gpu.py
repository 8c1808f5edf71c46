"""Everything that needs a GPU, in one run of under nine minutes on an H100: check, tune, measure.

    python3 benchmarks/gpu.py                # LLaMA-7B with random bf16 weights; nothing is downloaded
    python3 benchmarks/gpu.py --smoke        # the same route on a tiny model, on a CPU if need be

    check    every back-end of the sampled gradient against the dense oracle
    tiles    the Triton kernel's tile sizes on LLaMA-7B's projections
    op       back-ends by shape and K; rewrites the table that chooses between them
    steps    whole training steps: time over the floor, memory, the largest batch in 80 GB

Phases come in this order, each writes its result file when it ends, and one that would outrun the clock is
left out and named. Needs torch with Triton, transformers, peft, rich and matplotlib.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import op
import torch
from common import RESULTS

from neuroada_cli import files
from neuroada_cli.commands import bench
from neuroada_cli.delta import sampled_grad, triton_grad
from neuroada_cli.errors import ResourceError
from neuroada_cli.machine.load import machine
from neuroada_cli.selection.criteria import choose

SECONDS = 9 * 60 - 20
BUDGET = 80_000_000_000  # what the paper's throughput is compared in
LLAMA = ((4096, 4096, 4096), (4096, 4096, 11008), (4096, 11008, 4096))  # (T, I, O)
# (T, I, O, K)
CHECKS = (
    (1, 1, 1, 1),
    (7, 5, 3, 5),
    (257, 130, 66, 1),
    (300, 64, 129, 64),
    (1024, 512, 384, 20),
)  # T, I, O, K
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-2}


class Clock:
    """What is left of the run. Phases ask before they start."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.left_out: list[str] = []

    def has(self, seconds: float, phase: str) -> bool:
        if time.monotonic() + seconds <= self._end:
            print(f"== {phase} ({self._end - time.monotonic():.0f} s left)", flush=True)
            return True
        self.left_out.append(phase)
        print(f"== {phase}: left out, no time", flush=True)
        return False


def check(device: torch.device) -> list[dict[str, Any]]:
    """Largest difference to the fp32 oracle, relative to its largest entry, per back-end, dtype and shape."""
    rows = []
    for dtype, tolerance in TOLERANCE.items():
        for tokens, inputs, outputs, k in CHECKS:
            generator = torch.Generator(device=device).manual_seed(tokens)
            grad_TO, x_TI = (
                torch.randn(tokens, n, device=device, dtype=dtype, generator=generator)
                for n in (outputs, inputs)
            )
            score_OI = torch.rand(outputs, inputs, device=device, generator=generator)
            index_OK = choose(score_OI, k)
            expected_OK = sampled_grad.dense_oracle(grad_TO.double().float(), x_TI.double().float(), index_OK)
            for name in sampled_grad.usable(device, dtype):
                triton_grad.last_transpose.clear()
                got_OK = sampled_grad.BACKENDS[name](grad_TO, x_TI, index_OK)
                again_OK = sampled_grad.BACKENDS[name](grad_TO, x_TI, index_OK)
                scale = float(expected_OK.abs().max()) or 1.0
                error = float((got_OK - expected_OK).abs().max()) / scale
                rows.append(
                    {
                        "backend": name, "dtype": str(dtype).removeprefix("torch."),
                        "shape_TIOK": [tokens, inputs, outputs, k], "error": error,
                        "repeatable": torch.equal(got_OK, again_OK),
                        "ok": error <= tolerance and got_OK.dtype == torch.float32,
                    }
                )  # fmt: skip
    return rows


def tiles(shapes: Sequence[tuple[int, int, int]], device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Every tile of the Triton kernel per shape and K, as a ratio to that layer's forward + dx."""
    rows = []
    for tokens, inputs, outputs in shapes:
        generator = torch.Generator(device=device).manual_seed(0)
        x_TI, grad_TO, weight_OI = (
            torch.randn(size, device=device, dtype=torch.bfloat16, generator=generator)
            for size in ((tokens, inputs), (tokens, outputs), (outputs, inputs))
        )

        def floor(x_TI: Any = x_TI, grad_TO: Any = grad_TO, weight_OI: Any = weight_OI) -> None:
            torch.nn.functional.linear(x_TI, weight_OI)
            grad_TO @ weight_OI

        for k in (1, 20):
            index_OK = choose(weight_OI, k)
            runs: dict[str, Callable[[], Any]] = {"floor": floor}
            for block_o in (4, 8, 16, 32):
                for block_t in (128, 256, 512):
                    for warps in (4, 8):
                        run = _tile(grad_TO, x_TI, index_OK, block_o, block_t, warps)
                        run()  # compiles
                        runs[f"{block_o} x {block_t}, {warps} warps"] = run
            ratios, seconds = op.interleave(runs, rounds, device)
            best = min(ratios, key=lambda name: ratios[name])
            rows.append(
                {
                    "tokens": tokens, "inputs": inputs, "outputs": outputs, "k": k, "best": best,
                    "best_ratio": ratios[best], "floor_seconds": seconds, "ratios": ratios,
                    "default": f"{triton_grad.BLOCK_O} x {triton_grad.BLOCK_T}, {triton_grad.WARPS} warps",
                }
            )  # fmt: skip
            print(f"  T={tokens} I={inputs} O={outputs} K={k}: {best} {ratios[best]:.4f}", flush=True)
    return rows


def _tile(
    grad_TO: torch.Tensor, x_TI: torch.Tensor, index_OK: torch.Tensor, block_o: int, block_t: int, warps: int
) -> Callable[[], torch.Tensor]:
    return lambda: triton_grad.triton_grad(grad_TO, x_TI, index_OK, block_o, block_t, warps)


# name -> (settings of `neuroada bench`, seconds it may take). mask and full have runs of their own, with the
# floor and K=1 beside them, because their dense state fills the device.
STEPS: dict[str, tuple[dict[str, Any], float]] = {
    "llama-7b": ({"compare": ("lora", "scatter"), "batch": 8, "sequence": 512, "k": (1, 20)}, 80),
    "llama-7b-mask": ({"compare": ("mask",), "batch": 2, "sequence": 512, "k": (1,)}, 60),
    "llama-7b-budget": (
        {"compare": ("lora", "mask"), "batch": 1, "sequence": 512, "k": (1,), "memory_budget": BUDGET},
        90,
    ),
    "llama-7b-full": ({"compare": ("full",), "batch": 1, "sequence": 512, "k": (1,)}, 60),
}


def steps(clock: Clock, model: str, dtype: str, device: str, results: Path, smoke: bool) -> None:
    for name, (settings, seconds) in STEPS.items():
        if not clock.has(seconds, f"steps {name}"):
            continue
        settings = dict(settings)
        if smoke:
            settings |= {"sequence": 32, "batch": 2}
            settings |= {"memory_budget": 2_000_000} if "memory_budget" in settings else {}
        target = results / f"step_gpu_{name}.json"
        try:
            bench.run(
                model=model, dtype=dtype, device=device, rounds=2 if smoke else 8, warmup=1 if smoke else 3,
                json_out=target, plot_out=target.with_suffix(".png"), **settings,
            )  # fmt: skip
        except ResourceError as error:
            print(f"  {name}: {error.line()}", flush=True)
            files.write_json(target, [{"settings": settings, "machine": machine(), "failed": error.line()}])
        if device != "cpu":
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description="Check, tune and measure on one GPU.")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; results go to --results only")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    if not torch.cuda.is_available() and not given.smoke:
        sys.exit("bench-gpu: there is no CUDA device here; nothing was measured")
    if given.smoke and given.results == RESULTS:
        parser.error("--smoke needs --results: its figures must not replace measured ones")
    given.results.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = Clock(given.seconds)
    failed = _kernels(clock, device, given.results, given.smoke)
    model, dtype = ("pico", "fp32") if given.smoke else ("llama-7b", "bf16")
    steps(clock, model, dtype, str(device), given.results, given.smoke)
    about = {"machine": machine(), "left_out": clock.left_out, "failed_checks": failed}
    files.write_json(given.results / "gpu_run.json", about)
    if failed:
        sys.exit(f"bench-gpu: {failed} checks against the oracle failed, see gpu_check.json")


def _kernels(clock: Clock, device: torch.device, results: Path, smoke: bool) -> int:
    """The phases on the op alone; returns the number of failed checks."""
    failed = 0
    shapes = ((64, 32, 48),) if smoke else LLAMA
    rounds = 3 if smoke else 20
    if clock.has(60, "check"):
        rows = check(device)
        failed = sum(not row["ok"] for row in rows)
        files.write_json(results / "gpu_check.json", {"machine": machine(), "rows": rows})
        worst = max(row["error"] for row in rows)
        print(f"  {len(rows) - failed} of {len(rows)} checks hold, largest relative error {worst:.1e}")
    if triton_grad.available(device) and clock.has(90, "tiles"):
        rows = tiles(shapes, device, rounds)
        files.write_json(results / "gpu_tiles.json", {"machine": machine(), "rows": rows})
    if clock.has(90, "op"):
        dtypes = ["fp32"] if smoke else ["bf16", "fp32"]
        rows = list(op.table(shapes, (1, 4, 20), dtypes, device, rounds))
        files.write_json(results / f"op_{device.type}.json", {"machine": machine(), "rows": rows})
        if not smoke:
            op.write_table(rows, machine()["gpu"])
            sampled_grad._table.cache_clear()  # the steps below choose by what was just measured
            sampled_grad.pick_backend.cache_clear()
        for row in rows:
            print(f"  {row['kind']} I={row['inputs']} O={row['outputs']} K={row['k']}: {row['ratios']}")
    return failed


if __name__ == "__main__":
    main()
