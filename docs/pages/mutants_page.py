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
tries as many as it can in 40 minutes, those of the first table before all others, and keeps the verdicts of
those it does not come to; `python tests/mutants/mutation.py` tries all.

"""
KINDS = """
## Kinds that tests once did not notice

Tests of an earlier version of the package passed with these faults in it. Each kind has its faults here, and
the test that now fails on them first.

| kind | the fault in it | what became of it |
|---|---|---|
"""
ALL = """
## All

| file | what a user would feel | what became of it |
|---|---|---|
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
    dates = sorted({entry["date"] for entry in tried})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    head = (
        f"Without a fault the same tests pass; that was run {plain}.\n\n"
        f"{len(tried)} of {found['in the catalogue']} tried ({when}), "
        f"{len(tried) - missed} caught, {missed} not.\n"
    )
    kinds = "".join(
        f"| {entry['kind']} | `{entry['file']}`: {entry['about']} | {_outcome(entry)} |\n"
        for entry in sorted((e for e in tried if e["kind"]), key=lambda e: e["kind"])
    )
    every = "".join(f"| `{entry['file']}` | {entry['about']} | {_outcome(entry)} |\n" for entry in tried)
    return INTRODUCTION + head + KINDS + kinds + ALL + every


def _outcome(entry: dict[str, str]) -> str:
    caught = entry["caught by"].replace("|", "\\|")
    return f"`{caught}`" if "::" in caught else caught
