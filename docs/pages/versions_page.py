"""docs/versions.md from docs/results/versions.json: `make test-versions`."""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).parents[1]
FILE = DOCS / "results" / "versions.json"
TESTS = DOCS.parent / "tests"
ALL = sorted({file.relative_to(TESTS).parts[0].removesuffix(".py") for file in TESTS.rglob("test_*.py")})
INTRODUCTION = """\
# Both ends of the allowed versions

Written by `make test-versions`. It makes an environment for each end and runs the default tests there (those
of `make test`): *lowest* is every package at the first version that `pyproject.toml` allows, *newest* at the
last that the package index served that day. `constraints.txt` holds the versions in between that the project
is developed with. Where only some folders of `tests/` were run, they are named below the table.

"""


def page() -> str:
    found = json.loads(FILE.read_text(encoding="utf-8"))
    ends = list(found)
    lines = [f"| | {' | '.join(ends)} |", "|---|" + "---|" * len(ends)]
    lines += [
        f"| {name} | {_row([found[end]['versions'][name] for end in ends])} |"
        for name in found[ends[0]]["versions"]
    ]
    lines.append(f"| Python | {_row([found[end]['python'] for end in ends])} |")
    for key in ("passed", "skipped"):
        lines.append(f"| tests {key} | {_row([f'{found[end][key]:,}' for end in ends])} |")
    lines.append(f"| tests failed | {_row([str(len(found[end]['failed'])) for end in ends])} |")
    lines.append(f"| run on | {_row([found[end]['date'] for end in ends])} |")
    rooms = {end: [name for name in ALL if name in found[end]["rooms"]] for end in ends}
    lines += ["", *(f"Run on *{end}*: {_named(rooms[end])}." for end in ends)]
    failed = [f"- {end}: `{name}`" for end in ends for name in found[end]["failed"]]
    return INTRODUCTION + "\n".join([*lines, *([""] if failed else []), *failed]) + "\n"


def _named(rooms: list[str]) -> str:
    if len(rooms) == len(ALL):
        return "all of them"
    return ", ".join(f"`tests/{name}`" for name in rooms)


def _row(cells: list[str]) -> str:
    return " | ".join(cells)
