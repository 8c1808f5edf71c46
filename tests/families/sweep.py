"""Every command on a tiny model of many types: `make families`.

python tests/families/sweep.py                       # all types; writes docs/results/families.json anew
python tests/families/sweep.py --only mamba jamba    # these alone; the other rows of the file stay
python tests/families/sweep.py --missing             # goes on where a sweep was stopped

A type's model is made from its config with random weights and saved as transformers saves it. Each cell is a
run of the real command line, in a process of the type's own, and what came out is held against oracles that
read nothing but the model as transformers loads it. A cell says

    yes              it works, and is what the oracle says
    refused: LINE    the command ends with this line, which is what a user sees
    the model: LINE  the type's own code fails without us, too
    wrong: WHAT      neither; the sweep ends with exit code 1
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "families.json"
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import oracles  # noqa: E402
import torch  # noqa: E402
from forked import child, code_of  # noqa: E402
from swept_types import SWEPT, Swept, write_sets  # noqa: E402

YES, REFUSED, MODEL, WRONG = "yes", "refused: ", "the model: ", "wrong: "
BUG = 70
SHARED = (
    "neuroada_cli",
    "transformers",
    "torch",
    "datasets",
    "bitsandbytes",
    "matplotlib",
    "accelerate",
    "PIL",
    "rich",
)
DTYPES = {"equal, fp32": torch.float32, "equal, bf16": torch.bfloat16}
LABELS = {"sequence-classification": 2, "image-classification": 9}
Check = Callable[[str], None]


def command(*words: str) -> tuple[int, str]:
    """Exit code and everything said of a command line, run in this process."""
    from neuroada_cli.cli.app import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            main(list(words))
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
    raise AssertionError("a command ends with an exit code")


def cell(words: tuple[str, ...], check: Check = lambda said: None) -> str:
    code, said = command(*words)
    if code:
        line = next((line for line in reversed(said.splitlines()) if line.startswith("error: ")), said[-300:])
        return (WRONG if code == BUG else REFUSED) + line.removeprefix("error: ")
    try:
        check(said)
    except AssertionError as error:
        return f"{WRONG}{error}"
    return YES


def swept(one: Swept) -> dict[str, str]:
    """Column -> cell, of one type, in the current folder."""
    one.make(Path("base"))
    write_sets(Path("sets"))
    Path("recipe.yaml").write_text(json.dumps(one.recipe()))
    loaded, chosen = oracles.Loaded(one, LABELS.get(one.task)), Path("chosen.safetensors")
    found = {"select": cell(("select", "recipe.yaml", "--out", str(chosen)),
                            lambda said: oracles.selected(loaded, chosen))}  # fmt: skip
    if found["select"] != YES:
        return found
    for column, dtype in DTYPES.items():
        found[column] = runs_alone(loaded, dtype) or equal(
            lambda dtype=dtype: oracles.equal_at_zero(loaded, chosen, dtype)
        )
    found["train"] = cell(("train", "recipe.yaml"), lambda said: oracles.trained(Path("run"), said))
    if found["train"] == YES:
        found["merge"] = cell(
            ("merge", "run", "out"), lambda _: oracles.merged(loaded, Path("run"), Path("out"))
        )
        found["eval"] = evaluated()
    found["nf4"] = cell(
        ("train", "recipe.yaml", "--set", "model.quantization=nf4", "--out", "run-nf4"),
        lambda said: oracles.trained(Path("run-nf4"), said),
    )
    if found["nf4"] == YES:
        found["nf4"] = cell(("eval", "run-nf4", "--out", "eval-nf4"))
    packing = ("--set", "train.packing=true", "--out", "run-packed")
    found["packed"] = cell(
        ("train", "recipe.yaml", *packing), lambda said: oracles.trained(Path("run-packed"), said)
    )
    return found


def runs_alone(loaded: oracles.Loaded, dtype: torch.dtype) -> str | None:
    """Why the model cannot go forward and backward by itself, if so."""
    try:
        loaded.outputs(loaded.model(dtype=dtype).requires_grad_(True)).square().sum().backward()
    except Exception as error:
        return f"{MODEL}{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def equal(check: Callable[[], None]) -> str:
    try:
        check()
    except AssertionError as error:
        return f"{WRONG}{error}"
    return YES


def evaluated() -> str:
    """Of the adapter and of the merged model: the same answers."""
    first = cell(("eval", "run", "--out", "eval-run"))
    if first != YES:
        return first
    return cell(
        ("eval", "out", "--out", "eval-out"), lambda _: oracles.answered(Path("eval-run"), Path("eval-out"))
    )


def alone(one: Swept) -> dict[str, str]:
    """In a process and a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="neuroada-families-") as name:
        room = Path(name)

        def act() -> None:
            with open(room / "noise", "w") as noise:
                os.dup2(noise.fileno(), 2)
            os.environ["NEUROADA_CACHE"] = str(room / "cache")
            os.chdir(room)
            (room / "found.json").write_text(json.dumps([swept(one), sorted(sys.modules)]))

        code = code_of(child(act))
        if code:
            return {"select": f"{WRONG}ends with {code}: {(room / 'noise').read_text()[-400:]}"}
        found: dict[str, str]
        found, modules = json.loads((room / "found.json").read_text())
        _import(modules)
        return found


def _import(modules: list[str]) -> None:
    """What a child needed the next ones need, too."""
    for module in modules:
        if module.partition(".")[0] in SHARED and module not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)


def kept() -> dict[str, dict[str, Any]]:
    """The rows of the result file that are still of a type that is swept, by type and task."""
    known = {key(one) for one in SWEPT}
    rows = json.loads(RESULTS.read_text())["types"] if RESULTS.is_file() else []
    return {name: row for row in rows if (name := f"{row['type']} {row['task']}") in known}


def key(one: Swept) -> str:
    return f"{one.name} {one.task}"


def unswept(rows: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Kind of model -> the types that transformers has a class of it for, and that have no row of it."""
    from transformers.models.auto import modeling_auto

    from neuroada_cli.hub.kinds import CLASSES

    has = {(row["type"], row["task"]) for row in rows}
    tables = {
        task: getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES") for task, (_, name) in CLASSES.items()
    }
    found = {task: [name for name in names if (name, task) not in has] for task, names in tables.items()}
    classified = tables["sequence-classification"]  # what an encoder of texts is trained as
    masked = [name for name in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES if name not in classified]
    return {task: sorted(names) for task, names in (found | {"masked-lm": masked}).items()}


def write(rows: dict[str, dict[str, Any]]) -> None:
    versions = {name: version(name) for name in ("transformers", "torch", "bitsandbytes")}
    ordered = [rows[key(one)] for one in SWEPT if key(one) in rows]
    told = {"versions": versions, "types": ordered, "not swept": unswept(ordered)}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", help="types by name")
    parser.add_argument("--missing", action="store_true", help="those that the result file has no row of")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = kept() if given.only or given.missing else {}
    wanted = [one for one in SWEPT if not given.only or one.name in given.only]
    for one in (one for one in wanted if not given.missing or key(one) not in rows):
        started = time.perf_counter()
        cells = alone(one)
        rows[key(one)] = {"type": one.name, "task": one.task, "pictures": one.pictures, "cells": cells}
        write(rows)
        print(f"{one.name} ({one.task}), {time.perf_counter() - started:.0f} s", flush=True)
        for column, said in cells.items():
            if said != YES:
                print(f"    {column}: {said}", flush=True)
    write(rows)  # what transformers has may have changed where no row has
    wrong = [
        row["type"] for row in rows.values() if any(said.startswith(WRONG) for said in row["cells"].values())
    ]
    if wrong:
        sys.exit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
