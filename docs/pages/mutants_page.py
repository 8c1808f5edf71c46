"""docs/mutants.md from docs/results/mutants.json: `make mutants`."""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).parents[1]
FILE = DOCS / "results" / "mutants.json"
NOT_CAUGHT = ("survived", "no verdict")
INTRODUCTION = """\
# Faults that the tests notice

Written by `make mutants`. `tests/mutants/` names one-line faults of the package by what a user would feel.
Each is put into a copy of the package, and the tests that should notice it are run there. `make mutants`
tries as many as it can in 40 minutes, every fourth first; `python tests/mutants/run.py` all.

"""


def page() -> str:
    found = json.loads(FILE.read_text(encoding="utf-8"))
    tried = found["tried"]
    missed = sum(entry["caught by"].startswith(NOT_CAUGHT) for entry in tried)
    plain = (
        "first on the package as it is"
        if found.get("run on the package as it is", True)
        else "by `make test`"
    )
    lines = [
        f"Without a fault the same tests pass; that was run {plain}.\n",
        f"{len(tried)} of {found['in the catalogue']} tried, {len(tried) - missed} caught, {missed} not.",
        "",
    ]
    lines += ["| file | what a user would feel | what became of it |", "|---|---|---|"]
    lines += [f"| `{entry['file']}` | {entry['about']} | {_outcome(entry)} |" for entry in tried]
    return INTRODUCTION + "\n".join(lines) + "\n"


def _outcome(entry: dict[str, str]) -> str:
    caught = entry["caught by"].replace("|", "\\|")
    return f"`{caught}`" if "::" in caught else caught
