"""One-process runs by earlier commits and later ones: the same bits, and how long a step takes.

    python benchmarks/one_process.py [--pair BEFORE AFTER]...   # into benchmarks/results/one_process.json

The same recipes are trained and merged by both commits of a pair, each checked out into a folder of its own
(`git worktree`), with the packages of this environment. Compared bit for bit: losses, gradient norms and
learning rates of the log, selection, adapter, the optimizer's state and the merged weights. Timed: what the
optimizer steps take of the processor, by one thread. The commits take turns, the other one first in every
second round; a ratio is the median over the rounds of (median step after / median step before).
stories260K lies in $NEUROADA_SHARED/models.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import RESULTS, whole_process

ROOT = Path(__file__).resolve().parents[1]
# around the commits with which runs of several processes came, and from there until now
PAIRS = (("045cdbe^", "5111a93"), ("045cdbe^", "HEAD"))
WARM = 2  # steps of a run that are not timed
Settings = dict[str, dict[str, Any]]
# on stories260K but for the last; each with what it changes
RUNS: dict[str, Settings] = {
    "K=1": {"select": {"k": 1}},
    "K=20": {"select": {"k": 20}},
    "K=20, bf16": {"select": {"k": 20}, "model": {"dtype": "bf16"}},
    "K=4 over nf4": {"select": {"k": 4}, "model": {"dtype": "bf16", "quantization": "nf4"}},
    "K=4, packed, micro-batches": {"select": {"k": 4}, "train": {"packing": True, "micro_batch_size": 2}},
    "K=4, recomputed": {"select": {"k": 4}, "train": {"gradient_checkpointing": True}},
    "lora": {"train": {"method": "lora"}},
    "full": {"train": {"method": "full"}, "optim": {"lr": 1e-4}},
    "K=1, gone on with": {"select": {"k": 1}},
    "SmolLM2-135M, K=1": {"select": {"k": 1}, "train": {"max_steps": 6, "save_every": 6}},
}
RESUMED, LARGE = "K=1, gone on with", "SmolLM2-135M, K=1"
LOGGED = ("kind", "step", "loss", "grad_norm", "lr", "tokens")
KEPT = {"selection": "selection.safetensors", "adapter": "last/adapter_model.safetensors",
        "optimizer": "last/state/optimizer.safetensors", "merged": "merged/*.safetensors"}  # fmt: skip


def recipe(name: str, small: Path, large: str) -> dict[str, Any]:
    """A training of 20 steps on rows that the package makes; at step 10 a checkpoint and an evaluation."""
    values: dict[str, Any] = {
        "name": "run", "device": "cpu",
        "model": {"path": large if name == LARGE else str(small), "dtype": "fp32"},
        "data": {"task": "due_dates", "limit": 80, "validation_limit": 8, "max_length": 96},
        "optim": {"lr": 1e-2, "warmup_ratio": 0.1, "weight_decay": 0.01},
        "train": {"max_steps": 20, "batch_size": 4, "save_every": 10, "eval_every": 10, "keep": 3},
    }  # fmt: skip
    for section, changes in RUNS[name].items():
        values[section] = {**values.get(section, {}), **changes}
    return values


# ---------------------------------------------------------------------------------------------------
# Inside: by the commit that PYTHONPATH names


def inside(folder: Path) -> None:
    """Train and merge every recipe by the command line; what the steps took goes into times.json."""
    from neuroada_cli.cli.app import main as command
    from neuroada_cli.loop import loop

    taken: list[float] = []
    step = loop.train_step

    def timed(*given: Any, **named: Any) -> Any:
        started = time.process_time()
        stats = step(*given, **named)
        taken.append(time.process_time() - started)
        return stats

    loop.train_step = timed
    times: dict[str, list[float]] = {}
    for name, place in places(folder).items():
        taken.clear()
        train = ["train", str(place / "r.yaml"), "--out", str(place / "run")]
        said(command, train)
        if name == RESUMED:
            go_back(place / "run")
            said(command, [*train, "--resume"])
        said(command, ["merge", str(place / "run"), str(place / "run" / "merged")])
        times[name] = taken[WARM:]
    (folder / "times.json").write_text(json.dumps(times), encoding="utf-8")


def said(command: Any, words: list[str]) -> None:
    sys.argv = ["neuroada", *words]
    try:
        command()
    except SystemExit as ended:
        if ended.code:
            raise


def go_back(run: Path) -> None:
    """To the first checkpoint, as if the run had been stopped after it."""
    first, *later = sorted(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    for link in (run / "last", run / "best"):
        link.unlink()
        link.symlink_to(first.name)
    for checkpoint in later:
        shutil.rmtree(checkpoint)


def places(folder: Path) -> dict[str, Path]:
    return {name: folder / f"run{number}" for number, name in enumerate(RUNS)}


# ---------------------------------------------------------------------------------------------------
# Outside


@contextlib.contextmanager
def checked_out(room: Path, commits: list[str]) -> Iterator[dict[str, Path]]:
    """Each commit in a folder of its own, which git forgets afterwards."""
    found: dict[str, Path] = {}
    try:
        for number, commit in enumerate(commits):
            found[commit] = room / f"commit{number}"
            subprocess.run(
                ["git", "worktree", "add", "--quiet", "--detach", str(found[commit]), commit],
                cwd=ROOT, check=True,
            )  # fmt: skip
        yield found
    finally:
        for folder in found.values():
            subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=False)


def run(source: Path, room: Path, small: Path, large: str) -> dict[str, Any]:
    """All recipes once by a checked out commit: times and, by run, what was written. The folder goes."""
    folder = room / "runs"
    for name, place in places(folder).items():
        place.mkdir(parents=True)
        (place / "r.yaml").write_text(json.dumps(recipe(name, small, large)), encoding="utf-8")
    more = {"PYTHONPATH": str(source), "NEUROADA_CACHE": str(room / f"cache-{source.name}")}
    whole_process([sys.executable, __file__, "--inside", str(folder)], room, more)
    times = json.loads((folder / "times.json").read_text(encoding="utf-8"))
    written = {name: contents(place / "run") for name, place in places(folder).items()}
    shutil.rmtree(folder)
    return {"times": times, "written": written}


def contents(run_folder: Path) -> dict[str, Any]:
    """kind -> what can be compared with ==: lines of numbers, or name -> (type, shape, bytes) of a tensor."""
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = {"log": [[json.loads(line).get(key) for key in LOGGED] for line in lines]}
    for kind, pattern in KEPT.items():
        found[kind] = {}
        for file in sorted(run_folder.glob(pattern)):
            found[kind] |= tensors(file)
    return found


def tensors(file: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """By the format: 8 bytes of length, a JSON header with offsets, the bytes."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = (entry["dtype"], entry["shape"], data[start + begin : start + end])
    return found


def compare(
    before: str, after: str, rounds: int, room: Path, small: Path, large: str
) -> list[dict[str, Any]]:
    """Of two commits: the ratio of step times by run, and what of it differs."""
    ratios: dict[str, list[float]] = {name: [] for name in RUNS}
    differing: dict[str, set[str]] = {name: set() for name in RUNS}
    milliseconds: dict[str, list[float]] = {name: [] for name in RUNS}
    with checked_out(room, [before, after]) as source:
        for number in range(rounds):
            order = [before, after] if number % 2 == 0 else [after, before]
            found = {commit: run(source[commit], room, small, large) for commit in order}
            one, other = found[before], found[after]
            for name in RUNS:
                medians = [statistics.median(each["times"][name]) for each in (one, other)]
                ratios[name].append(medians[1] / medians[0])
                milliseconds[name].append(1000 * medians[0])
                here, there = one["written"][name], other["written"][name]
                differing[name] |= {kind for kind in here if here[kind] != there[kind]}
                print(
                    f"round {number + 1}, {name:28} {ratios[name][-1]:.3f} {sorted(differing[name])}",
                    flush=True,
                )
    rows = []
    for name in RUNS:
        quartiles = statistics.quantiles(ratios[name], n=4) if rounds > 1 else ratios[name] * 3
        rows.append({
            "run": name, "step_ms_before": round(statistics.median(milliseconds[name]), 3),
            "ratio": round(quartiles[1], 4), "quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
            "rounds": rounds, "differs": sorted(differing[name]),
        })  # fmt: skip
    return rows


def commit_of(name: str) -> dict[str, str]:
    """Its short hash and its day."""
    told = subprocess.run(
        ["git", "log", "-1", "--format=%h %cs", name], cwd=ROOT, check=True, capture_output=True, text=True
    )
    short, day = told.stdout.split()
    return {"commit": short, "date": day}


def main() -> None:
    parser = argparse.ArgumentParser(description="One-process runs by earlier commits and later ones.")
    parser.add_argument("--pair", nargs=2, action="append", metavar=("BEFORE", "AFTER"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-write", action="store_true", help="leave the result file alone")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside is not None:
        inside(given.inside)
        return
    sys.path.insert(0, str(ROOT))
    from neuroada_cli import files, hub
    from neuroada_cli.machine.load import machine

    small = Path(os.environ.get("NEUROADA_SHARED", ROOT.parent / "shared")) / "models/stories260K"
    place = RESULTS / "one_process.json"
    known = json.loads(place.read_text(encoding="utf-8"))["pairs"] if place.is_file() else []
    with tempfile.TemporaryDirectory(prefix="neuroada-bench-") as room:
        large = str(hub.resolve_model("smollm2-135m"))
        for names in given.pair or PAIRS:
            before, after = (commit_of(name) for name in names)
            rows = compare(before["commit"], after["commit"], given.rounds, Path(room), small, large)
            found = {"before": before, "after": after, "machine": machine(), "rows": rows}
            known = [pair for pair in known if pair["before"] != before or pair["after"] != after]
            if not given.no_write:
                files.write_json(place, {"pairs": [*known, found]})
            known.append(found)


if __name__ == "__main__":
    main()
