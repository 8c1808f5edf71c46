"""The command lines of the pages: which there are, and what each says that it needs beside a laptop.

A command stands in a block (indented, or fenced, there bare or behind `$ `), or in the text between
backticks. What a line of a block needs is said behind its `#` (`# gpu, hub: the paper's own run`), or in
brackets in its section's heading.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import click
import typer.main

from neuroada_cli.cli.app import app
from neuroada_cli.commands.recipes import GROUPS, billions, needs_hub
from neuroada_cli.recipe.load import bundled_recipes, load_recipe

ROOT = Path(__file__).parents[1]
PAGES = tuple(
    str(file.relative_to(ROOT))
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
)
REFERENCE = (
    "docs/cli.md"  # its lines are examples beside each other, those of other pages follow on each other
)
WORD = "gpu|hub|hours"
MARK = re.compile(rf"((?:{WORD})(?:, (?:{WORD}))*)(?::|$)")
HEADING_MARK = re.compile(rf"\(((?:{WORD})(?:, (?:{WORD}))*)\)$")
BLOCK = re.compile(r"(?:neuroada|torchrun) ")
IN_TEXT = re.compile(r"`(neuroada\s[^`]+)`")
# in the text a command stands for any run, recipe, ...: here for those that the tests prepare
ANY = {"RECIPE": "my.yaml", "RUN": "runs/mine", "TARGET": "runs/mine", "FORMAT": "vllm-sparse"}
INPUTS = (
    "recipe", "model", "data", "selection", "paths", "base", "target", "predictions", "forgetting",
    "include_path", "folder", "source", "data_dir",
)  # fmt: skip
PACKAGED = {"smollm2-135m", "minilm-l6-v2"}


@dataclass(frozen=True)
class Line:
    """A command of a page. said  what stands behind its `#`; heading_needs  its section's marks."""

    page: str
    number: int
    text: str
    said: str = ""
    heading_needs: str = ""
    in_text: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {self.text}"

    @property
    def needs(self) -> str:
        """What it is marked with: "gpu, hub", or nothing."""
        found = MARK.match(self.said)
        return found[1] if found else ""

    @property
    def runs(self) -> bool:
        """Whether a test runs it."""
        return not self.needs and not self.heading_needs and not self.is_name

    @property
    def is_name(self) -> bool:
        """A usage line of the reference, or a command that is only spoken of: `neuroada merge`."""
        return (self.page == REFERENCE and "[" in self.text) or (self.in_text and not self.parts[1])

    @cached_property
    def words(self) -> tuple[str, ...]:
        """What follows `neuroada`, or torchrun's own words; without what a shell does."""
        words = shlex.split(self.text)[1:]
        if self.in_text:
            words = [ANY.get(word, word) for word in words]
        cut = min((words.index(sign) for sign in "<>" if sign in words), default=len(words))
        return tuple(words[:cut])

    def redirected(self, sign: str) -> str | None:
        """The file behind `<` or `>`."""
        words = shlex.split(self.text)
        return words[words.index(sign) + 1] if sign in words else None

    @cached_property
    def parts(self) -> tuple[click.Command, list[str]]:
        """The command, and the words that it is given."""
        words = list(self.words)
        if self.text.startswith("torchrun"):
            from torch.distributed.run import parse_args

            given = parse_args(words)
            assert (given.module, given.training_script) == (True, "neuroada_cli"), self
            assert given.nnodes == "1:1" or (given.rdzv_backend, given.rdzv_id != "none") == ("c10d", True), (
                self
            )
            words = given.training_script_args
        command = _program()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        return command, words

    def given(self) -> dict[str, Any]:
        """Its parameters, as the command line itself reads them. Raises what that raises."""
        command, words = self.parts
        if self.words[0].startswith("-"):  # of the program itself; asked, it would act
            return {}
        return command.make_context("neuroada", list(words), resilient_parsing=False).params


@cache
def _program() -> click.Command:
    return typer.main.get_command(app)


def lines(page: str) -> Iterator[Line]:
    """The commands of a page, those of its blocks in their order and those of its text behind them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    yield from _of_blocks(page, text)
    prose = re.sub(r"^( {4}|```)?.*$", lambda m: "" if m[1] else m[0], _without_fences(text), flags=re.M)
    for found in IN_TEXT.finditer(prose):
        number = prose.count("\n", 0, found.start()) + 1
        yield Line(page, number, " ".join(found[1].split()), in_text=True)


def _without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)


def _of_blocks(page: str, text: str) -> Iterator[Line]:
    heading, fence, begun = "", None, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fence = line[3:] if fence is None else None
        elif fence is None and line.startswith("#"):
            heading = line
        code = _code(line, fence)
        if begun:
            code = begun + " " + line.strip()
        begun = code[:-1].strip() if code.endswith("\\") else ""
        if begun or not BLOCK.match(code):
            continue
        command, _, said = re.sub(r"\s+#\s", "\0", code, count=1).partition("\0")
        marks = HEADING_MARK.search(heading)
        yield Line(page, number, command.strip(), said.strip(), marks[1] if marks else "")


def _code(line: str, fence: str | None) -> str:
    """The command that a line of a block holds; nothing for other lines."""
    if fence is None:
        return line[4:].removeprefix("$ ") if line.startswith("    ") else ""
    if fence == "console":  # what has no prompt there was printed
        return line[2:] if line.startswith("$ ") else ""
    return line if fence in ("", "sh", "bash") else ""


def reasons(line: Line, there: set[str]) -> list[str]:
    """Why a line cannot run on a laptop without the hub; there  the files and folders that it may read."""
    given = line.given()
    found = []
    if line.text.startswith("torchrun") or (given.get("processes") and not given.get("dry_run")):
        found.append("several processes")
    if given.get("engine") or str(given.get("device")).startswith("cuda"):
        found.append("a GPU")
    if line.words[0] == "push" and not given.get("dry_run"):
        found.append("the hub")
    if given.get("harness") and not given.get("include_path"):
        found.append("the hub's rows")
    if isinstance(given.get("suite"), str):
        found.append("hours")
    for name in INPUTS:
        values = given.get(name)
        if not values or (name == "model" and line.words[0] == "bench"):  # a shape, no folder
            continue
        names = {str(Path(value)) for value in (values if isinstance(values, list | tuple) else [values])}
        for value in sorted(names - made_by(line)):
            found += _cannot_be_read(value, there)
    return found


def _cannot_be_read(value: str, there: set[str]) -> list[str]:
    if value in bundled_recipes():
        path = load_recipe(value).model.path
        large = billions(path) > GROUPS[0][1]
        return [f"{value}: {what}" for what, true in (("a GPU", large), ("the hub", needs_hub(path))) if true]
    known = value in PACKAGED or any(value == each or value.startswith(f"{each}/") for each in there)
    return [] if known else [f"{value}: nothing prepares it"]


def made_by(line: Line) -> set[str]:
    """The files and folders that a line leaves behind, for those that follow it on its page."""
    given = line.given()
    command, out = line.words[0], given.get("out")
    made = {str(Path(out))} if out else set()
    if command == "merge" and not given["weights"]:
        made |= {str(Path(path)) for path in given["paths"][1:]}
    if command == "train" and not given["dry_run"]:
        made.add(str(out or f"runs/{Path(given['recipe'] or given['data']).stem}"))
    if command == "select" and not out and not given["compare"]:
        made.add(f"runs/{Path(given['recipe']).stem}")
    if command == "merge" and given["paths"][0].endswith(".yaml"):
        made.add(f"runs/{Path(given['paths'][0]).stem}/merged")
    return made
