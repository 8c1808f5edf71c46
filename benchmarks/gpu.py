"""Everything that needs a GPU, in one run of under nine minutes on an H100: check, measure, tune.

    python3 benchmarks/gpu.py --results out           # LLaMA shapes, random bf16 weights, no download
    python3 benchmarks/gpu.py --adopt out/gpu.tar.gz  # elsewhere: lay the results where the pages look
    python3 benchmarks/gpu.py --smoke --results out   # the same route on a tiny model, on a CPU if need be

    check          every CUDA kernel against the oracle
    llama-7b       time and memory of floor, K=1, K=20 and LoRA r8, 8 x 512 tokens; -8192: twice as many
    budget         the largest batch in 80 GB and its samples per second, for NeuroAda, mask and LoRA
    mask           peak memory beside the mask-based method at one batch
    recipe, ...    rows as real runs have them: padded, packed, a number of tokens that is no multiple of 16,
                   gradient checkpointing, Llama-3 with its vocabulary of 128k
    nf4            over a base in 4 bits
    op, tiles      the gradient alone by shape and K, and the tiles of its kernel

The phases come in order of what they are worth. Each is caught by itself and writes its result when it ends;
all results so far are packed into gpu.tar.gz after each. One that would outrun the clock is left out and
named. Needs torch with Triton, transformers, peft and psutil; neither pydantic, typer nor rich.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import op
import torch
from common import RESULTS
from gpu_kernels import LLAMA, TILES, check, compile_ahead, tile_rows, updates
from gpu_loads import BUDGET, Load, Models, steps

from neuroada_cli import files
from neuroada_cli.delta import triton_grad
from neuroada_cli.machine.load import machine

SECONDS = 9 * 60 - 20
PACK = "gpu.tar.gz"
OTHERS = {"gpu_check": 50.0, "op_cuda": 35.0, "gpu_tiles": 25.0}  # seconds that they may take
# name -> (what is trained, seconds it may take)
STEPS: dict[str, tuple[Load, float]] = {
    "llama-7b": (Load(), 50),
    "llama-7b-8192": (Load(batch=16), 40),
    "llama-7b-budget": (Load(compare=("lora", "mask"), batch=1, budget=BUDGET, rounds=3), 100),
    "llama-7b-mask": (Load(compare=("mask",), k=(1,), batch=4, rounds=3), 25),
    "llama-7b-recipe": (Load(batch=16, rows="padded"), 20),
    "llama-7b-packed": (Load(batch=16, rows="packed"), 20),
    "llama-7b-unaligned": (Load(sequence=509), 25),
    "llama-7b-checkpointing": (Load(recomputes=True, rounds=5), 30),
    "llama3-8b": (Load(model="llama3-8b", rounds=5), 45),
    "llama-7b-nf4": (Load(packed_weights="nf4", rounds=4), 45),
}


class OutOfTimeError(Exception):
    """A phase ran longer than it may."""


class Run:
    """The phases of one run: what they wrote, what failed, what was left out."""

    def __init__(self, results: Path, seconds: float) -> None:
        self.results = results
        self._end = time.monotonic() + seconds
        self.left_out: list[str] = []
        self.failed: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.failed_checks = 0

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def phase(self, name: str, seconds: float, work: Callable[[Path], None]) -> None:
        """Run `work` with the file that it writes, if there is time for it; what it raises ends only it."""
        if self.left < seconds:
            self.left_out.append(name)
            print(
                f"== {name}: left out, {self.left:.0f} s are left of the {seconds:.0f} it may take",
                flush=True,
            )
            return
        print(f"== {name} ({self.left:.0f} s left)", flush=True)
        started = time.monotonic()
        target = self.results / f"{name}.json"
        try:
            with _limit(min(self.left, 2 * seconds)):
                work(target)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self.failed[name] = reason
            print("".join(traceback.format_exception(error)[-3:]), flush=True)
            files.write_json(target, [{"machine": machine(), "failed": reason}])
        self.seconds[name] = round(time.monotonic() - started, 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.note()

    def note(self) -> None:
        """What is known of the run, and all results so far in one file."""
        files.write_json(
            self.results / "gpu_run.json",
            {"machine": machine(), "left_out": self.left_out, "failed": self.failed, "seconds": self.seconds,
             "failed_checks": self.failed_checks},
        )  # fmt: skip
        partial = self.results / f"{PACK}.part"
        with tarfile.open(partial, "w:gz") as packed:
            for name in sorted(self.results.glob("*.json")):
                if name.stem in ("gpu_run", "gpu_check", "gpu_tiles", "op_cuda") or name.stem.startswith(
                    "step_gpu"
                ):
                    packed.add(name, name.name)
        os.replace(partial, self.results / PACK)


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise OutOfTimeError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def adopt(packed: Path) -> None:
    """Lay a run's results under benchmarks/results, and choose back-ends by what it measured."""
    with tarfile.open(packed) as archive:
        told = archive.extractfile("gpu_run.json")
        if told is None or json.load(told)["machine"]["gpu"] is None:
            sys.exit(f"{packed}: measured on no GPU (--smoke?); nothing was taken over")
        archive.extractall(RESULTS, filter="data")
    path = RESULTS / "op_cuda.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "rows" in result:
        op.write_table(result["rows"], result["machine"]["gpu"])


def run_all(run: Run, device: torch.device, smoke: bool) -> None:
    shapes = ((64, 32, 48),) if smoke else LLAMA
    rounds = 3 if smoke else 15
    models = Models("fp32" if smoke else "bf16", str(device))

    def checked(target: Path) -> None:
        compile_ahead(device, shapes, TILES)
        rows = check(device)
        run.failed_checks = sum(not row["ok"] for row in rows)
        result: dict[str, Any] = {"machine": machine(), "rows": rows}
        if triton_grad.available(device):
            result["update"] = updates(device)
            run.failed_checks += not result["update"]["ok"]
        files.write_json(target, result)
        print(f"  {run.failed_checks} of {len(rows)} comparisons with the oracle fail", flush=True)

    def ops(target: Path) -> None:
        rows = list(op.table(shapes, (1, 4, 20), ["fp32" if smoke else "bf16"], device, rounds))
        files.write_json(target, {"machine": machine(), "rows": rows})

    def tuned(target: Path) -> None:
        files.write_json(target, {"machine": machine(), "rows": tile_rows(shapes[:2], device, rounds)})

    run.phase("gpu_check", OTHERS["gpu_check"], checked)
    for name, (load, seconds) in STEPS.items():
        if load.packed_weights and smoke:
            continue

        def stepped(target: Path, load: Load = load) -> None:
            steps(models, load, target, lambda text: print(f"  {text}", flush=True), smoke)

        run.phase(f"step_gpu_{name}", seconds, stepped)
    models.forget()
    run.phase("op_cuda", OTHERS["op_cuda"], ops)
    if triton_grad.available(device):
        run.phase("gpu_tiles", OTHERS["gpu_tiles"], tuned)


def main() -> None:
    parser = argparse.ArgumentParser(description="Check, measure and tune on one GPU.")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; results go to --results only")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of all results")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--adopt", type=Path, metavar=PACK, help="take over what a run elsewhere measured")
    given = parser.parse_args()
    if given.adopt is not None:
        adopt(given.adopt)
        return
    if not torch.cuda.is_available() and not given.smoke:
        sys.exit("bench-gpu: there is no CUDA device here; nothing was measured")
    if given.smoke and given.results == RESULTS:
        parser.error("--smoke needs --results: its figures must not replace measured ones")
    given.results.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(given.results, given.seconds)
    run_all(run, device, given.smoke)
    run.note()
    print(f"all results: {given.results / PACK}")
    for name in run.left_out:
        print(f"left out: {name}")
    for name, reason in run.failed.items():
        print(f"failed: {name}: {reason}")
    if run.failed_checks or run.failed:
        sys.exit(
            f"bench-gpu: {run.failed_checks} checks against the oracle and {len(run.failed)} phases failed"
        )


if __name__ == "__main__":
    main()
