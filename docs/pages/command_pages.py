"""docs/cli.md and docs/recipe.md from the program itself.

The page is made from the commands and options, not from their rendered help, so that it does not depend on
the width of a terminal or the version of a help formatter.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from neuroada_cli.cli.app import app
from neuroada_cli.recipe.keys import Key, described_keys

RECIPE_INTRODUCTION = """\
# Recipes

Written by `make docs` from the schema; `neuroada recipes keys` shows the same. A recipe says what differs
from these defaults; on the command line `--set optim.lr=1e-3` wins over the file. Keys without a default must
be given. A wrong key, type or combination is refused with file and line before anything is loaded.
"""
INTRODUCTION = """\
# Command line

Written by `make docs` from the commands themselves. Every command has `--help`; `--debug`, anywhere on the
line, shows the traceback of an error. Behind an example's `#` stands what it needs beside a laptop (`gpu`,
`hub`, `hours`); the others are run by the tests.

| exit code | meaning |
|---|---|
| 0 | fine |
| 2 | recipe, flag or usage |
| 3 | data |
| 4 | model, adapter or selection |
| 5 | numerics: NaN, nothing trainable |
| 6 | memory, disk, permissions, a missing package |
| 7 | the output exists, or another process holds it |
| 8 | a peer process failed |
| 70 | a bug in neuroada |
| 130, 143, 129 | stopped by SIGINT, SIGTERM, SIGHUP; a training saves first |
"""


def cli_page() -> str:
    """The whole page as Markdown."""
    return "\n".join([INTRODUCTION, *_sections(app, "neuroada")])


def recipe_page() -> str:
    """Every key of a recipe, a table per section."""
    parts = [RECIPE_INTRODUCTION]
    by_section: dict[str, list[Key]] = {}
    for key in described_keys():
        by_section.setdefault(key.name.rpartition(".")[0], []).append(key)
    for section, keys in by_section.items():
        parts.append(f"## {section or 'the recipe itself'}\n")
        parts.append("| key | takes | default | |\n|---|---|---|---|")
        for key in keys:
            takes = key.values.replace("|", "\\|")
            default = f"`{key.default}`" if key.default is not None else "–"
            parts.append(f"| `{key.name}` | {takes} | {default} | {key.description} |")
        parts.append("")
    return "\n".join(parts)


def _sections(group: typer.Typer, path: str) -> list[str]:
    own = [_section(command.callback, _named(path, command)) for command in group.registered_commands]
    if group is not app and group.registered_callback:  # what the group's name alone does
        own.insert(0, _section(group.registered_callback.callback, path))
    below = [_sections(each.typer_instance, f"{path} {each.name}") for each in group.registered_groups]
    return own + [section for sections in below for section in sections]


def _named(path: str, command: Any) -> str:
    return f"{path} {command.name or command.callback.__name__}"


def _section(function: Callable[..., None], path: str) -> str:
    said, _, examples = inspect.getdoc(function).partition("\n\n\b\n")
    arguments, options = _parameters(function)
    usage = " ".join([path, *arguments, *(["[OPTIONS]"] if options else [])])
    parts = [f"## {path}\n", f"{' '.join(said.split())}\n", f"    {usage}\n"]
    if examples:
        lines = "".join(f"{_prompt(line)}{line.rstrip()}\n" for line in examples.splitlines())
        parts.append(f"```console\n{lines}```\n")
    rows = [f"| `{name}` | {text} |" for name, text in (arguments | options).items()]
    if rows:
        parts.append("\n".join(["| | |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _prompt(example: str) -> str:
    """Of a line that begins a command; an indented one goes on with it."""
    return "" if example.startswith(" ") else "$ "


def _parameters(function: Callable[..., None]) -> tuple[dict[str, str], dict[str, str]]:
    """(arguments, options): what is written on the command line -> what it means."""
    arguments, options = {}, {}
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if hints[name] is typer.Context:  # what was given, not something to give
            continue
        kind, info = typing.get_args(hints[name])
        default = parameter.default
        if isinstance(info, typer.models.ArgumentInfo):
            required = default is inspect.Parameter.empty
            arguments[info.metavar if required else f"[{info.metavar}]"] = info.help
        else:
            shown = f" Default: `{default}`." if default not in (None, False, "") and default != [] else ""
            # typer sorts the names out of the default's place only when it builds the command
            words = (info.default, *(info.param_decls or ()))
            flag = next(word for word in words if isinstance(word, str) and word.startswith("--"))
            options[f"{flag}{_value(kind, info)}"] = f"{info.help}{shown}"
    return arguments, options


def _value(kind: Any, info: Any) -> str:
    """What stands behind an option: " N", " A,B", " bf16\\|fp16"; nothing behind a switch."""
    if kind is bool:
        return ""
    if info.metavar:
        return f" {info.metavar}"
    plain = next((each for each in typing.get_args(kind) if each is not type(None)), kind)
    if typing.get_origin(kind) is typing.Literal:
        plain = kind
    if typing.get_origin(plain) is typing.Literal:
        return " " + "\\|".join(typing.get_args(plain))
    return {int: " N", Path: " PATH"}.get(plain, " TEXT")
