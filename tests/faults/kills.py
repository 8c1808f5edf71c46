"""SIGKILL, SIGINT, SIGTERM and SIGHUP at random moments, and files that may not grow.

    python tests/faults/kills.py report.json ROOM KIND COUNT [SEED]

Every case is a forked child of a process that has everything imported. KIND: saves, training, signals, sizes.
"""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from inject import RESOURCES, _temporaries, outcome
from scenarios import SCENARIOS, _save, _training, tiny_llama_folder

sys.path.insert(0, str(Path(__file__).parents[1]))
from forked import child
from tiny_run import tiny_recipe

from neuroada_cli import failures, files
from neuroada_cli.adapter.folder import read_adapter
from neuroada_cli.commands import train
from neuroada_cli.training.checkpoint import newest_complete

SAVES = 6
SIZES = (0, 1, 100, 1_000, 5_000, 20_000, 60_000)


def forked(act: Callable[[], None]) -> int:
    """The pid of a child that acts, and ends as the command line would."""
    return child(lambda: _ended_quietly(act))


def _ended_quietly(act: Callable[[], None]) -> int:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        act()
    except BaseException as error:
        return failures.report(error, False)
    return 0


def code_of(pid: int) -> int:
    """As a shell would give it: 128 + N after signal N."""
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def lasting(act: Callable[[], None]) -> float:
    """Seconds that a whole child takes."""
    started = time.perf_counter()
    assert code_of(forked(act)) == 0
    return time.perf_counter() - started


# ---------------------------------------------------------------------------------------------------


def saves(room: Path, count: int, chance: random.Random) -> Counter[str]:
    """Killed while it saves and prunes: what it said was saved is there, or something newer."""
    _, (model, method, _) = _training()
    expected = method.state(model).deltas  # type: ignore[attr-defined]

    def act(folder: Path, said: int) -> None:
        for step in range(1, SAVES + 1):
            _save(folder, step)
            os.write(said, bytes([step]))

    read, write = os.pipe()
    tries = []
    for number in range(5):  # the quickest: most kills are to come before the end
        (room / f"try-{number}").mkdir(parents=True)
        tries.append(lasting(functools.partial(act, room / f"try-{number}", write)))
        os.read(read, SAVES)
    whole = min(tries)
    found: Counter[str] = Counter()
    for number in range(count):
        folder = room / f"case-{number}"
        folder.mkdir()
        pid = forked(functools.partial(act, folder, write))
        time.sleep(chance.uniform(0, whole))
        os.kill(pid, signal.SIGKILL)
        code = code_of(pid)
        os.write(write, b"\0")
        said = max(os.read(read, SAVES + 1))
        newest = newest_complete(folder)
        if said:
            assert newest is not None, f"said {said}, nothing loads"
        step = int(newest.name.rpartition("-")[2]) if newest else 0
        assert said <= step <= said + 1, f"said {said}, found {step}"
        if newest is not None:
            deltas = read_adapter(newest).deltas
            assert all((deltas[name] == expected[name]).all() for name in expected)
        files.clean_stale(folder)
        assert not _temporaries(folder), _temporaries(folder)
        shutil.rmtree(folder)
        found["all was done" if code == 0 else "recovered"] += 1
    return found


class Run:
    """A small training that saves after every step, and what it must end with."""

    def __init__(self, room: Path) -> None:
        self.room = room
        self.model = tiny_llama_folder(room / "llama")
        lasting(functools.partial(self.train, "whole", False))  # the first one is slower than all others
        # the quickest, so that what comes at random comes before the end
        self.seconds = min(lasting(functools.partial(self.train, f"again-{n}", False)) for n in range(3))
        self.expected = self.end_of("whole")

    def train(self, name: str, resume: bool) -> None:
        recipe = tiny_recipe(self.model, self.room / name, train={"save_every": 1})
        train.run(recipe, resume=resume, quiet=True)

    def end_of(self, name: str) -> dict[str, str]:
        """Hash of every file of the last checkpoint that does not name its folder."""
        entries = files.verify_folder(self.room / name / "last")["files"]
        return {file: entry["sha256"] for file, entry in entries.items() if file.endswith(".safetensors")}

    def case(self, number: int, kill: int, chance: random.Random) -> str:
        name = f"case-{number}"
        pid = forked(functools.partial(self.train, name, False))
        time.sleep(chance.uniform(0, 0.9 * self.seconds))
        os.kill(pid, kill)
        code = code_of(pid)
        assert code in (0, 128 + kill), f"exit {code} after signal {kill}"
        if code:
            resumed = code_of(forked(functools.partial(self.train, name, True)))
            assert resumed == 0, f"resume ended with {resumed}"
        assert self.end_of(name) == self.expected, "another end than without the signal"
        losses, whole = (self.losses(each) for each in (name, "whole"))
        assert losses == whole, "another log than without the signal"
        shutil.rmtree(self.room / name)
        return "resumed, same end" if code else "all was done"

    def losses(self, name: str) -> list[tuple[int, float]]:
        lines = (self.room / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        return [(entry["step"], entry["loss"]) for entry in entries if entry["kind"] == "train"]


def training(room: Path, count: int, chance: random.Random) -> Counter[str]:
    return stopped(Run(room), count, (signal.SIGKILL,), chance)


def signals(room: Path, count: int, chance: random.Random) -> Counter[str]:
    return stopped(Run(room), count, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), chance)


def stopped(run: Run, count: int, kinds: tuple[int, ...], chance: random.Random) -> Counter[str]:
    """Until `count` trainings were really stopped: some are done before it comes."""
    found: Counter[str] = Counter()
    while found["resumed, same end"] < count:
        number = found.total()
        assert number < 20 + 5 * count, f"of {number} trainings hardly one was stopped: {found}"
        found[run.case(number, kinds[number % len(kinds)], chance)] += 1
    return found


def sizes(room: Path, count: int, chance: random.Random) -> Counter[str]:
    """No file may grow beyond so many bytes (EFBIG), as under a quota: exit 6, and as before."""
    found: Counter[str] = Counter()
    for name, scenario in SCENARIOS.items():
        prepared = room / "prepared"
        prepared.mkdir()
        scenario.prepare(prepared)
        before = scenario.state(prepared)
        for size in SIZES[:count]:
            folder = room / "case"
            shutil.copytree(prepared, folder, symlinks=True)
            code = code_of(forked(functools.partial(_limited, scenario.act, folder, size)))
            state = scenario.state(folder)
            right = {(0, "new"), (RESOURCES, before), (RESOURCES, scenario.between)}
            if name.startswith("training"):  # all is there but what is drawn of it at the end, which is said
                right.add((RESOURCES, "new"))
            assert (code, state) in right, f"{name}, {size}: {code}, {state}"
            assert not _temporaries(folder), f"{name}, {size}: {_temporaries(folder)}"
            shutil.rmtree(folder)
            found[f"after {outcome(state, before)}"] += 1
        shutil.rmtree(prepared)
    return found


def _limited(act: Callable[[Path], object], folder: Path, size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    act(folder)


KINDS = {"saves": saves, "training": training, "signals": signals, "sizes": sizes}


def main(report: str, room: str, kind: str, count: str, seed: str = "0") -> None:
    torch.set_num_threads(1)  # a forked child has none of its parent's threads, and would wait for them
    found = KINDS[kind](Path(room), int(count), random.Random(int(seed)))
    Path(report).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
