"""One of two processes of a training killed at random moments of its whole life, and gone on with.

    python tests/ranks/killed.py COUNT [--write FILE]

Up to COUNT kills in all: a FILE that is there counts already, and is gone on from.

Trainings are started as a person does (`--processes 2`), killed and resumed until they end; in every second
one each process holds its own rows only (`train.parallel: shard`). Every kill has to end all processes with
exit code 8 and one line, leave nothing half written, and every end has to be that of a run that was never
killed, bit for bit. How long the others lived on is measured, from the kill to the last of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_run import hashes, losses, tiny_llama_folder, tiny_recipe

from neuroada_cli import files
from neuroada_cli.machine.load import machine
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.training.checkpoint import newest_opened

ROOT = Path(__file__).parents[2]
PROCESSES = 2
WAYS = ("replicate", "shard")
PROMISED = 30.0  # seconds after which none is left
HANGS = 300.0  # seconds after which this script gives up
LINES = tuple(
    f"error: process {rank} was killed by SIGKILL, so the others were ended, too; go on with --resume"
    for rank in range(PROCESSES)
)


class Training:
    """One `neuroada train --processes 2`."""

    def __init__(self, recipe: Path, out: Path, way: str) -> None:
        words = ["--out", str(out), "--processes", str(PROCESSES), "--set", f"train.parallel={way}"]
        resumes = ["--resume"] if any(out.glob("checkpoint-*")) else ["--overwrite"]
        command = [sys.executable, "-m", "neuroada_cli", "train", str(recipe), "--quiet", *words, *resumes]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.said = out.with_suffix(".said")
        with self.said.open("w") as said:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
        self.ranks = self._ranks()
        self.began = time.monotonic()

    def _ranks(self) -> list[int]:
        """The process numbers of all ranks, as soon as all are there, in their order."""
        until = time.monotonic() + HANGS
        while time.monotonic() < until and self.process.poll() is None:
            found = children(self.process.pid)
            if len(found) == PROCESSES:
                return found
            time.sleep(0.02)
        sys.exit(f"has not started: {self.said.read_text()}")

    def wait(self, seconds: float) -> bool:
        """Whether it ended by itself in that time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end_after_kill(self, rank: int) -> float | None:
        """Kill one; the seconds until all have gone. It has to end with exit code 8 and one line. None where
        the process had done its work already.
        """
        killed = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.ranks[rank], signal.SIGKILL)
        everyone = [*self.ranks, self.process.pid]
        told = False
        while self.process.poll() is None or any(alive(pid) for pid in everyone):
            lived = time.monotonic() - killed
            if lived > PROMISED / 2 and not told:
                told = True
                print(f"  process {rank} killed, still there: {where(everyone)}", flush=True)
            if lived > HANGS:
                sys.exit(f"still there {HANGS:.0f} s after a kill: {where(everyone)}")
            time.sleep(0.02)
        seconds = time.monotonic() - killed
        if self.process.returncode == 0:
            return None
        said = self.said.read_text().splitlines()
        if self.process.returncode != 8 or said[-1:] != [LINES[rank]]:
            sys.exit(f"exit {self.process.returncode} after process {rank} was killed: {said}")
        return seconds


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            told = stat.read_text().rpartition(")")[2].split()
        except OSError:  # has ended
            continue
        if int(told[1]) == parent and told[0] != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def where(processes: Sequence[int]) -> list[str]:
    """State of those that are still there (ranks in their order, then the launcher), what they wait for."""
    found = []
    for number, pid in enumerate(processes):
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            found.append(f"{number} {state} {Path(f'/proc/{pid}/wchan').read_text()}")
    return found


def refuse_half_written(run: Path) -> None:
    """Every folder that is called a checkpoint is one; what `last` points to is there."""

    def refuse(name: str, why: str) -> None:
        sys.exit(f"{run}/{name} is half written: {why}")

    if run.is_dir():
        newest_opened(run, refuse)
        if (run / "last").is_symlink() and not (run / "last").is_dir():
            sys.exit(f"{run}/last points to nothing")


@dataclass
class Found:
    """came_out: what -> how often; seconds: from each kill to the end of all; file: where it is kept.

    longest  of all seconds, also of those that an older file did not list
    """

    came_out: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    file: Path | None = None
    longest: float = 0.0

    @classmethod
    def so_far(cls, file: Path | None) -> Found:
        """What the file has of kills before."""
        if file is None or not file.is_file():
            return cls(file=file)
        kept = json.loads(file.read_text(encoding="utf-8"))
        return cls(Counter(kept["came_out"]), kept.get("seconds", []), file, kept["longest_seconds"])

    @property
    def kills(self) -> int:
        return sum(count for what, count in self.came_out.items() if "killed" in what)

    def note_kill(self, what: str, seconds: float) -> None:
        self.seconds.append(seconds)
        self.longest = max(self.longest, seconds)
        self.note(what)

    def note(self, what: str) -> None:
        """Count it, and write down all that is known by now."""
        self.came_out[what] += 1
        if self.file is not None and self.seconds:
            middle = sorted(self.seconds)[len(self.seconds) // 2]
            files.write_json(
                self.file,
                {
                    "machine": machine(), "kills": self.kills,
                    "came_out": dict(sorted(self.came_out.items())), "promised_seconds": PROMISED,
                    "longest_seconds": round(self.longest, 1), "median_seconds": round(middle, 1),
                    "seconds": [round(one, 2) for one in self.seconds],
                },
            )  # fmt: skip


class Runs:
    """Trainings in a folder, one after the other, each with what it must end with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = tiny_llama_folder(folder / "model")
        self.recipe = folder / "recipe.yaml"
        train = {"epochs": 4, "save_every": 3, "eval_every": 100}
        self.recipe.write_text(to_yaml(tiny_recipe(model, folder / "run", train=train)))
        self.expected, self.life = {}, {}
        for way in WAYS:
            whole = folder / f"whole-{way}"
            training = Training(self.recipe, whole, way)
            if not training.wait(HANGS) or training.process.returncode:
                sys.exit(f"a training that nobody killed has failed: {training.said.read_text()}")
            self.life[way] = time.monotonic() - training.began
            self.expected[way] = hashes(whole / "last"), losses(whole)

    def until_the_end(self, name: str, way: str, kills: int, chance: random.Random, found: Found) -> None:
        """One training, killed at most so often."""
        run = self.folder / name
        while True:
            training = Training(self.recipe, run, way)
            if training.wait(chance.uniform(0, self.life[way]) if kills else HANGS):
                break
            rank = chance.randrange(PROCESSES)
            seconds = training.end_after_kill(rank)
            if seconds is None:
                break
            kills -= 1
            refuse_half_written(run)
            when = "with a checkpoint" if any(run.glob("checkpoint-*")) else "before the first checkpoint"
            found.note_kill(f"process {rank} killed {when}", seconds)
            print(f"{name}, {way}: {rank} {when}, all gone after {seconds:.1f} s", flush=True)
        if training.process.returncode:
            sys.exit(f"{name}: exit {training.process.returncode}: {training.said.read_text()}")
        if (hashes(run / "last"), losses(run)) != self.expected[way]:
            sys.exit(f"{run} ended otherwise than a run that was never killed")
        found.note(f"same end, {way}")
        shutil.rmtree(run)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Kill one of two processes at random moments.")
    parser.add_argument("count", type=int)
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the counts go")
    given = parser.parse_args(words)
    found = Found.so_far(given.write)
    chance = random.Random(found.kills)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # else a slow disk is measured as well
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        runs, number = Runs(Path(folder)), 0
        while found.kills < given.count or number < len(WAYS):
            left = max(0, given.count - found.kills)
            share = -(-left // 2) if number < len(WAYS) - 1 else left
            runs.until_the_end(f"run-{number}", WAYS[number % len(WAYS)], share, chance, found)
            number += 1
    print(f"{found.kills} kills, {dict(found.came_out)}, longest {found.longest:.1f} s", flush=True)
    if found.longest > PROMISED:
        sys.exit(f"a kill was noticed after {found.longest:.1f} s; {PROMISED:.0f} s are promised")


if __name__ == "__main__":
    main()
