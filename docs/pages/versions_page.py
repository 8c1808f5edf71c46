"""docs/versions.md from docs/results/versions.json: `make test-versions`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
FILE = DOCS / "results" / "versions.json"
INTRODUCTION = """\
# Both ends of the allowed versions

Written by `make test-versions`. It makes an environment for each end and runs the default tests there (those
of `make test`): *lowest* is every package at the first version that `pyproject.toml` allows, *newest* at the
last that the package index served that day. `constraints.txt` holds the versions in between that the project
is developed with. Only what is named below the table was run.

"""


def page() -> str:
    found = json.loads(FILE.read_text(encoding="utf-8"))
    ends = sorted(found)  # lowest, newest
    lines = [f"| | {' | '.join(ends)} |", "|---|" + "---|" * len(ends)]
    names = dict.fromkeys(name for end in ends for name in found[end]["versions"])
    rows = {name: [found[end]["versions"].get(name, "") for end in ends] for name in names}
    rows["Python"] = [found[end]["python"] for end in ends]
    rows["tests passed"] = [f"{found[end]['passed']:,}" for end in ends]
    rows["tests skipped"] = [str(sum(found[end]["skipped"].values())) for end in ends]
    rows["tests failed"] = [str(len(found[end]["failed"])) for end in ends]
    rows["run on"] = [found[end]["date"] for end in ends]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    for end in ends:
        lines += ["", *_details(end, found[end])]
    return INTRODUCTION + "\n".join(lines) + "\n"


def _details(end: str, result: dict[str, Any]) -> list[str]:
    folders = ", ".join(f"`{name}`" for name in result["rooms"])
    lines = [f"## {end.capitalize()}", "", f"Run of `tests/`: {folders}."]
    lines += [""] * bool(result["failed"] or result["skipped"])
    lines += [f"- failed: `{name}`" for name in result["failed"]]
    return lines + [f"- skipped ({count}): {reason}" for reason, count in result["skipped"].items()]
