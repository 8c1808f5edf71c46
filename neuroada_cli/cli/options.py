"""What several commands take from the command line, and how its words become values."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from neuroada_cli.errors import RecipeError
from neuroada_cli.files.folders import is_adapter
from neuroada_cli.machine import kernels

if TYPE_CHECKING:
    from neuroada_cli.ranks.group import Ranks
    from neuroada_cli.recipe.schema import Recipe

OWN_ROWS = "instruct"  # the bundled recipe that `train` takes where none is named
Dtype = Literal["bf16", "fp16", "fp32"]


def bundled(incomplete: str) -> list[str]:
    """What a shell completes a recipe's name to. (Files it completes by itself.)"""
    from neuroada_cli.recipe.load import bundled_recipes

    return [name for name in bundled_recipes() if name.startswith(incomplete)]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A .yaml file, or the name of a bundled recipe.", autocompletion=bundled
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key: optim.lr=3e-4. Repeatable."),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder searched first for data sets (else $NEUROADA_DATA)."),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option("--processes", min=1, help="Start so many processes on this machine, one per GPU."),
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="The base model, if it has moved since training.")
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model's folder brings.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what lies in the output folder.")]


def load(
    recipe: str, overrides: list[str], data_dir: Path | None = None, run_dir: Path | None = None
) -> Recipe:
    """The recipe with --set applied; --data-dir and --out are short forms of two of its keys."""
    from neuroada_cli.recipe.load import load_recipe

    short = {"data.data_dir": data_dir, "run_dir": run_dir}
    given = [f"{key}={json.dumps(str(path))}" for key, path in short.items() if path is not None]
    found = load_recipe(recipe, [*overrides, *given])
    look_at_model(found.model.path)
    if found.model.trust_remote_code:
        kernels.let_in()
    return found


def named_after(recipe: str | None, model: str | None, data: str | None, out: Path | None) -> list[str]:
    """--model and --data as overrides. Without a recipe they are all there is, and the run is named after the
    rows. Raises RecipeError where one of them is missing then.
    """
    missing = [option for option, given in (("--model", model), ("--data", data)) if given is None]
    if recipe is None and missing:
        words = " and ".join(missing)
        raise RecipeError(f"no recipe, and no {words}", "RECIPE", "name a recipe, or --model and --data")
    short = {"model.path": model, "data.train": data}
    if recipe is None and data is not None and out is None:
        stem = Path(data.rstrip("/")).name.partition(".")[0]
        short["description"] = f"{Path(str(model)).name}, tuned on {Path(data).name}"
        short["name"] = re.sub(r"[^\w.-]", "-", stem).lstrip(".-") or OWN_ROWS
    return [f"{key}={json.dumps(value)}" for key, value in short.items() if value is not None]


def look_at_model(*named: str | None) -> None:
    """Raises ModelError for a model's folder whose config cannot be that of its files; what is no folder is
    looked at later. Here, since torch is not there yet: the answer comes at once.
    """
    from neuroada_cli.files import claims

    for folder in [Path(os.path.expanduser(name)) for name in named if name is not None]:
        if os.path.isdir(folder):  # is_dir raises for a name that no system allows
            claims.look(folder)


def look_at_base(adapter: str | Path, base: str | None) -> None:
    """Raises ModelError for a base that is not to be had, or cannot be what its config says: the one that is
    named, else that of the adapter in a folder.
    """
    from neuroada_cli.adapter import base_name

    look_at_model(base)
    if base is None and os.path.isdir(adapter):
        base_name.look(Path(adapter))


def suite_overrides(overrides: list[str], data_dir: Path | None = None) -> dict[str, Any]:
    """--set words as recipe key -> value, for every recipe of a suite. Raises RecipeError."""
    from neuroada_cli.recipe.load import read_override

    given: dict[str, Any] = {} if data_dir is None else {"data.data_dir": str(data_dir)}
    return given | dict(read_override(word) for word in overrides)


def given_options(context: typer.Context) -> set[str]:
    """What was written on the command line: arguments by their name in the help, options by their longest."""
    found = set()
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE":
            found.add(
                max(parameter.opts, key=len) if parameter.opts[0].startswith("-") else _shown(parameter)
            )
    return found


def launched(
    context: typer.Context, processes: int, alone: bool = False, instead: Sequence[str] = ()
) -> bool:
    """Whether the command ran in so many processes, as torchrun starts them; False for a single one.

    alone    none is to be started: the command speaks of so many and needs one
    instead  options of the processes, whatever was given here

    Raises RecipeError inside such a process, typer.Exit with the code of a run that failed.
    """
    from neuroada_cli.ranks.place import several

    if several():
        raise RecipeError("this process was started by a launcher already", "--processes", "leave it out")
    if processes == 1 or alone:
        return False
    from neuroada_cli.ranks.launch import launch

    code = launch(processes, [str(context.info_name), *instead, *_given_again(context, instead)])
    if code:
        raise typer.Exit(code)
    return True


@contextmanager
def in_ranks() -> Iterator[Ranks]:
    """This process's place among those that a launcher started, and good-bye to them when all went well."""
    from neuroada_cli.ranks.group import join, leave

    ranks = join()
    yield ranks
    leave(ranks)


def _given_again(context: typer.Context, instead: Sequence[str] = ()) -> list[str]:
    """What was written behind the command, but --processes and what others are given instead of, for the
    processes that it starts.
    """
    options: list[str] = ["--debug"] if "--debug" in sys.argv else []
    arguments: list[str] = []
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is None or source.name != "COMMANDLINE" or parameter.name == "processes":
            continue
        if {*parameter.opts, *parameter.secondary_opts} & {*instead}:
            continue
        value = context.params[str(parameter.name)]
        values = value if isinstance(value, list | tuple) else [value]
        if not parameter.opts[0].startswith("-"):
            arguments += map(str, values)
        elif isinstance(value, bool):
            options.append(max(parameter.opts if value else parameter.secondary_opts, key=len))
        else:
            options += [f"{max(parameter.opts, key=len)}={each}" for each in values]
    return [*options, "--", *arguments] if arguments else options


def _shown(argument: Any) -> str:
    return str(argument.metavar or argument.name).strip("[]").upper()


def refuse_idle(context: typer.Context, by: str, *used: str) -> None:
    """Raises RecipeError naming what was given beside `by` and would have no effect."""
    idle = sorted(given_options(context) - {by, *used})
    if idle:
        raise RecipeError(f"takes no {', '.join(idle)}", by, "leave it out")


def merged_default(folder: Path) -> Path:
    """Inside a run folder; beside an adapter folder, whose manifest tells all that may be in it; here, for an
    adapter of the hub.
    """
    if not folder.exists():
        return Path(f"{folder.name}-merged")
    if is_adapter(folder):
        return folder.with_name(f"{folder.name}-merged")
    return folder / "merged"


def run_folder(source: str) -> Path:
    """The folder of a run: named itself, or by the recipe that made it."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    from neuroada_cli.recipe.load import bundled_recipes

    if folder.suffix in {".yaml", ".yml"} or source in bundled_recipes():
        return load(source, []).run_path
    return folder  # `merge` says what is wrong with it


def split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def parse_counts(text: str, option: str) -> tuple[int, ...]:
    """ "1,20" as (1, 20). Raises RecipeError for anything but positive whole numbers."""
    counts = split(text)
    if not counts or not all(count.isdecimal() and int(count) > 0 for count in counts):
        raise RecipeError(f"{text!r} is not a list of positive whole numbers", option, "write e.g. 1,20")
    return tuple(int(count) for count in counts)


def parse_bytes(text: str | None, option: str) -> int | None:
    """ "5GB" or "512MiB" as bytes (GB = 10^9, GiB = 2^30; a bare number counts bytes). Raises RecipeError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise RecipeError(f"{text!r} is not a size", option, "write e.g. 5GB or 512MiB")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))
    if size < 1:
        raise RecipeError(f"{text!r} is not a size", option, "write e.g. 5GB or 512MiB")
    return size
