"""One-line mutations of the package, each run against the tests that should notice it: `make mutants`.

python tests/mutants/mutation.py                 # all of them; writes the result file
python tests/mutants/mutation.py --minutes 40    # as many as get their turn, spread over all; writes it, too
python tests/mutants/mutation.py --go-on         # only those without a verdict, or whose text has changed
python tests/mutants/mutation.py --only tied     # those whose file or description says so; writes nothing

A mutation is a piece of a source file that stands there once and what takes its place, what a user would
feel, and a few tests; some stand for a kind that tests once missed. It is applied to a copy of the package in
a temporary folder. The tests run in a fork of this process, which has imported the heavy libraries once, and
nothing of the package. First the same tests run on a copy as it is, all in one go: what fails there shows
nothing.

Not mutmut or cosmic-ray: they turn syntax around by rule, in thousands, against a suite of minutes. These are
faults that were made or feared, named for what they do to a user.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "neuroada_cli"
RESULTS = ROOT / "docs" / "results" / "mutants.json"
HEAVY = (
    "torch", "transformers", "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert", "transformers.models.gpt2.modeling_gpt2", "datasets", "peft",
    "bitsandbytes", "hypothesis", "pydantic", "rich", "typer", "matplotlib.figure", "sklearn.metrics",
    "scipy.stats", "math_verify",
)  # fmt: skip
BESIDE = ("recipes", "docs", "benchmarks", "pyproject.toml")  # what the package looks for beside itself
SECONDS = 300  # a mutant that runs into this has hung
TURNS = (0, 2, 1, 3)  # after those of a kind every fourth of the catalogue, those in the middle, the rest
SURVIVED, HUNG, BROKEN = "survived", "hung", "no verdict: pytest ended with"


@dataclass(frozen=True)
class Mutant:
    """about  what a user would feel;  tests  arguments of pytest, one selection of a few seconds
    kind  of faults that tests once did not notice, which this one stands for
    """

    file: str
    was: str
    now: str
    about: str
    tests: tuple[str, ...]
    kind: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.was, self.now

    def stale(self) -> bool:
        """Whether the piece does not stand in the file exactly once."""
        file = PACKAGE / self.file
        return not file.exists() or file.read_text(encoding="utf-8").count(self.was) != 1

    def apply(self, package: Path) -> None:
        path = package / self.file
        path.write_text(path.read_text(encoding="utf-8").replace(self.was, self.now), encoding="utf-8")


def catalogue() -> list[Mutant]:
    """All of tests/mutants/*.toml."""
    found = []
    for file in sorted(Path(__file__).parent.glob("*.toml")):
        for entry in tomllib.loads(file.read_text(encoding="utf-8"))["mutant"]:
            found.append(Mutant(**entry | {"tests": tuple(entry["tests"])}))
    return found


def in_turn(mutants: Sequence[Mutant]) -> list[Mutant]:
    """The order in which they are tried when there may be no time for all."""
    named, others = [m for m in mutants if m.kind], [m for m in mutants if not m.kind]
    return named + [m for start in TURNS for m in others[start :: len(TURNS)]]


def tried_before() -> dict[tuple[str, str, str], dict[str, str]]:
    """The entries of the result file by what they changed."""
    tried = json.loads(RESULTS.read_text(encoding="utf-8"))["tried"] if RESULTS.exists() else []
    return {(entry["file"], entry["was"], entry["now"]): entry for entry in tried}


class FirstFailure:
    """A plugin that remembers what failed first."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


class Copy:
    """A temporary folder with the package in it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="neuroada-mutant-"))
        shutil.copytree(PACKAGE, self.folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in BESIDE:
            (self.folder / name).symlink_to(ROOT / name)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def started(copy: Copy, tests: Sequence[str]) -> tuple[int, Path]:
    """(process, where it will say what failed first) of a fork that runs tests on a copy of the package."""
    said = copy.folder / "first-failure"
    pid = os.fork()
    if pid:
        return pid, said
    try:
        os.setsid()  # so that what hangs goes with all that it started
        log = os.open(copy.folder / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(ROOT)
        # safe path: a command that a test starts takes the copy, too, not the folder it is started in
        os.environ |= {"PYTHONPATH": str(copy.folder), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1"}
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(copy.folder))
        import pytest

        first = FirstFailure()
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", f"--rootdir={ROOT}"]
        code = pytest.main([*options, *(str(ROOT / test) for test in tests)], plugins=[first])
        said.write_text(first.name, encoding="utf-8")
        os._exit(int(code))
    except BaseException:
        os._exit(99)


def outcomes(
    mutants: Iterable[Mutant | tuple[str, ...]],
    jobs: int,
    seconds: float = SECONDS,
    until: float = math.inf,
    report: Callable[[dict[Any, str]], None] = lambda found: None,
) -> dict[Any, str]:
    """What became of each: the first test that failed, SURVIVED, or HUNG. A bare selection of tests is run on
    the package as it is.

    seconds  after which one has hung;  until  a time of `monotonic` after which none is begun
    report  is told all that there is after each one, so that what is stopped has its result
    """
    waiting, running, found = list(mutants), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs:
            if time.monotonic() > until:
                waiting.clear()
                break
            each = waiting.pop(0)
            copy = Copy()
            if isinstance(each, Mutant):
                each.apply(copy.folder / PACKAGE.name)
            pid, said = started(copy, each.tests if isinstance(each, Mutant) else each)
            running[pid] = each, copy, said, time.monotonic() + seconds
        time.sleep(0.05)
        for pid, (each, copy, said, end) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done and time.monotonic() < end:
                continue
            if not done:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            del running[pid]
            found[each] = HUNG if not done else _said(status, said, copy)
            copy.remove()
            print(f"{len(found)}: {_about(each)} -> {found[each]}", flush=True)
            report(found)
    return found


def _said(status: int, said: Path, copy: Copy) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return SURVIVED
    name = said.read_text(encoding="utf-8") if said.exists() else ""
    if code == 1 and name:
        return name
    log = (copy.folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{BROKEN} {code}: {name or log[-1:]}"


def _about(each: Mutant | tuple[str, ...]) -> str:
    return f"{each.file}: {each.about}" if isinstance(each, Mutant) else f"as it is: {' '.join(each)}"


def _entries(
    mutants: Sequence[Mutant], found: dict[Any, str], kept: dict[tuple[str, str, str], dict[str, str]]
) -> list[dict[str, str]]:
    """What became of those that have a verdict, of this run or of the one before."""
    today = datetime.now(UTC).date().isoformat()
    return [
        {"file": m.file, "was": m.was, "now": m.now, "about": m.about, "kind": m.kind}
        | (
            {"caught by": found[m], "date": today}
            if m in found
            else {key: kept[m.key][key] for key in ("caught by", "date")}
        )
        for m in mutants
        if m in found or m.key in kept
    ]


def _write(entries: list[dict[str, str]], every: int, plain: bool) -> None:
    result = {"in the catalogue": every, "run on the package as it is": plain, "tried": entries}
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", help="a part of the file's name or of the description")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin none after so many")
    parser.add_argument("--go-on", action="store_true", help="keep the verdicts that there are")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--skip-plain", action="store_true", help="`make test` has just passed; the result file says so"
    )
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes
    mutants = [m for m in catalogue() if given.only is None or given.only in f"{m.file} {m.about}"]
    every = len(mutants)
    if stale := [f"{m.file}: {m.was!r}" for m in mutants if m.stale()]:
        sys.exit("\n".join(["stand there no longer, or more than once:", *stale]))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in HEAVY:
        importlib.import_module(name)
    if not given.skip_plain:
        everything = tuple(dict.fromkeys(test for m in mutants for test in m.tests))
        plain = outcomes([everything], 1, seconds=math.inf)
        if wrong := [name for name in plain.values() if name != SURVIVED]:
            sys.exit(f"fails on the package as it is: {', '.join(wrong)}")
    kept = tried_before() if given.go_on else {}
    waiting = [m for m in in_turn(mutants) if m.key not in kept]

    def write(found: dict[Any, str]) -> None:
        if given.only is None:
            _write(_entries(mutants, found, kept), every, not given.skip_plain)

    found = outcomes(waiting, given.jobs, until=until, report=write)
    mutants = [m for m in mutants if m in found]
    wrong = [f"{_about(m)}: {found[m]}" for m in mutants if found[m].startswith((SURVIVED, BROKEN))]
    if wrong:
        sys.exit("\n".join([f"{len(wrong)} of {len(mutants)} were not caught:", *wrong]))
    print(f"{len(mutants)} mutants, all of them caught")


if __name__ == "__main__":
    main()
