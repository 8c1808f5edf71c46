"""The rooms of docs/architecture.md, read from the source: each imports only rooms that stand before it."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "neuroada_cli"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# From the ground up. There is no middle: every room has its place, so there can be no circle.
ROOMS = (
    "stopping", "foreign_text", "errors", "failures", "machine", "ranks", "delta", "methods", "recipe",
    "files", "hub",
    "show", "data", "tasks", "loop", "selection", "memory", "evaluation", "adapter", "benchmarking",
    "merging", "export", "training", "peft_plugin", "commands", "suites", "cli",
)  # fmt: skip
LOOSE = {
    "stopping",
    "foreign_text",
    "errors",
    "failures",
    "__init__",
    "__main__",
}  # modules that are no folder

# The only things outside the standard library that a room may import.
ALLOWED_OUTSIDE = {
    "stopping": set(),
    "foreign_text": {"rich"},
    "errors": set(),
    "failures": set(),
    "machine": {"torch", "psutil"},
    "ranks": {"torch"},
    "delta": {"torch", "triton", "bitsandbytes"},
    "methods": {"torch", "peft"},
    "recipe": {"pydantic", "yaml"},
    "loop": {"torch", "numpy"},
    "peft_plugin": {"torch", "peft", "axolotl", "pydantic"},
    "cli": {"typer"},
}
# What a room may not import although it stands before it, and why.
APART = {
    "data": ({"tasks"}, "rows and batches know no task"),
    "loop": ({"recipe", "files", "hub", "tasks"}, "the loop knows no recipe and no disk"),
    "delta": ({"methods", "recipe"}, "the method itself needs torch only"),
}
MOST_LINES, MEDIAN_LINES = 400, 150


def room_of(module: str) -> str:
    """The part below the package: delta of neuroada_cli.delta.linear; of the package itself, nothing."""
    return [*module.split("."), ""][1]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str) -> set[str]:
    """Every imported module as a dotted name, also those inside functions; `from a import b` gives a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(names: set[str]) -> set[str]:
    """The rooms among imported names; `from neuroada_cli import __version__` is none."""
    ours = {room_of(name) for name in names if name.split(".")[0] == "neuroada_cli"}
    return ours - {"", "__version__"}


def wrong_imports(module: str, source: str) -> list[str]:
    """What a module imports that it may not."""
    room, names = room_of(module), imports(source)
    if room in ("", "__main__"):
        return []
    if room not in ROOMS:
        return [f"{room} has no place among the rooms"]
    before = set(ROOMS[: ROOMS.index(room) + 1])
    found = [f"{other} does not stand before {room}" for other in rooms_of(names) - before]
    closed, why = APART.get(room, (set(), ""))
    found += [f"{room} imports {other}: {why}" for other in rooms_of(names) & closed]
    if room in ALLOWED_OUTSIDE:
        outside = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"neuroada_cli"}
        found += [f"{room} imports {name}" for name in outside - ALLOWED_OUTSIDE[room]]
    if room == "commands" and not module.endswith(".quickstart"):  # the tour is the other commands in a row
        found += [f"a command imports {n}" for n in names if n.startswith("neuroada_cli.commands")]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    assert not wrong_imports(module_of(path), path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("neuroada_cli.files.tensors", "from neuroada_cli.hub.weights import read_header"),
        ("neuroada_cli.files.tensors", "def f():\n    from neuroada_cli import hub"),
        ("neuroada_cli.data.batch", "from neuroada_cli.tasks import answers"),
        ("neuroada_cli.memory.tracker", "import neuroada_cli.training.plan"),
        ("neuroada_cli.loop.loop", "from neuroada_cli.recipe.schema import Recipe"),
        ("neuroada_cli.loop.loop", "from neuroada_cli import files"),
        ("neuroada_cli.recipe.schema", "import torch"),
        ("neuroada_cli.delta.fold", "import numpy"),
        ("neuroada_cli.commands.eval", "from neuroada_cli.commands import train"),
        ("neuroada_cli.newroom.x", "import os"),
    ],
)
def test_the_search_for_wrong_imports_finds_them(module: str, source: str) -> None:
    """A circle that is added would show: files -> hub, data -> tasks, memory -> training, and their like."""
    assert wrong_imports(module, source)


def test_every_module_stands_in_a_room() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == LOOSE
    folders = {path.relative_to(PACKAGE).parts[0] for path in SOURCES if path.parent != PACKAGE}
    assert folders <= set(ROOMS)
    assert set(ROOMS) - LOOSE == folders, "a room without a module"


def test_modules_of_a_room_import_each_other_in_no_circle() -> None:
    known = {module_of(path): path for path in SOURCES}
    below: dict[str, set[str]] = {}
    for module, path in known.items():
        named = imports(path.read_text(encoding="utf-8"))
        found = {name if name in known else name.rpartition(".")[0] for name in named}
        below[module] = {name for name in found & known.keys() if known[name].name != "__init__.py"}

    def circle(module: str, route: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if module in route:
            yield (*route[route.index(module) :], module)
        elif module not in done:
            for other in below[module]:
                yield from circle(other, (*route, module))
            done.add(module)

    done: set[str] = set()
    for module in known:
        assert not list(circle(module, ()))


def test_files_tell_one_story() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert not {str(path): count for path, count in lines.items() if count > MOST_LINES}
    assert statistics.median(lines.values()) <= MEDIAN_LINES
    assert lines[PACKAGE / "commands" / "train.py"] <= 150


@pytest.mark.parametrize("module", ["recipe.load", "methods", "cli.app", "failures"])
def test_what_answers_at_once_imports_no_torch(module: str) -> None:
    script = f"import sys, neuroada_cli.{module}\nassert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_methods_are_known_by_their_records_only() -> None:
    """Nobody outside methods/ asks for a method by its name, but the bench for its own two columns."""
    asked = r'[=!]=\s*"(mask|full|lora|dora|loreft|smt|bitfit|head)"|\b(NeuroAda|LoReft|BitFit|Smt)\.name\b'
    names = re.compile(asked)
    users = {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        if room_of(module_of(path)) != "methods" and names.search(path.read_text(encoding="utf-8"))
    }
    assert not users


def test_only_hub_loads_models_through_transformers() -> None:
    loader = re.compile(r"(?<!PeftModel)\.from_pretrained\(|\bAutoModel\w*|\bAutoTokenizer\b|\bAutoConfig\b")
    users = {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        if room_of(module_of(path)) != "hub" and loader.search(path.read_text(encoding="utf-8"))
    }
    assert not users


# ---------------------------------------------------------------------------------------------------
# Only files/ writes

WRITERS = {
    "write_text",
    "write_bytes",
    "save_file",
    "dump",
    "savefig",
    "save_pretrained",
    "print_figure",
    "touch",
}
OF_OS = {"truncate", "replace", "rename", "renames", "link", "symlink", "write", "ftruncate", "mkfifo"}
OF_SHUTIL = {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "move"}
# where something else writes, and why that is not half written
ALSO_WRITES = {
    "stopping.py": "os.write",  # its one line, to the terminal past every buffer
    "delta/native.py": "os.replace",  # the kernel library, built beside its name; delta stands before files
    "adapter/folder.py": "tokenizer.save_pretrained",  # into the temporary folder of files.atomic_folder
    "show/figures.py": "figure.savefig",  # into the temporary file of files.atomic_file
    "benchmarking/footprint.py": "open",  # /proc/self/clear_refs
    "suites/warm.py": "os.write",  # into pipes
}


def writes(source: str) -> list[str]:
    """Calls that could write to a disk, with their line."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name, owner = "", ""
        if isinstance(call.func, ast.Attribute):
            name = call.func.attr
            owner = call.func.value.id if isinstance(call.func.value, ast.Name) else "…"
        elif isinstance(call.func, ast.Name):
            name = call.func.id
        if name == "open":
            words = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
            modes = [str(word.value) for word in words if isinstance(word, ast.Constant)]
            wrong = any(re.fullmatch(r"[rwaxbt+]{1,3}", mode) and set(mode) & set("wax+") for mode in modes)
        else:
            wrong = (
                (name in WRITERS and owner != "files")
                or (owner == "os" and name in OF_OS)
                or (owner == "shutil" and name in OF_SHUTIL)
            )
        if wrong:
            found.append(f"{call.lineno} {f'{owner}.' if owner else ''}{name}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "path.open('ab')", "open(path, 'w')", "open(path, mode='r+')", "path.open(mode='xb')",
        "os.truncate(p, 0)", "model.save_pretrained(folder)", "os.replace(a, b)", "a.b.write_text('x')",
        "shutil.copytree(a, b)", "json.dump(x, f)", "figure.savefig(p)",
    ],
)  # fmt: skip
def test_the_search_for_writers_finds_them(source: str) -> None:
    assert writes(source)
    assert not writes(
        "open(path)\nopen(path, 'rb')\npath.open('r')\nfiles.write_text(p, 'x')\na.replace('a', 'w')"
    )


def test_only_files_writes() -> None:
    """Everything that is written goes through one writer, so that nothing is ever half written."""
    found = {}
    for path in SOURCES:
        name = str(path.relative_to(PACKAGE))
        if room_of(module_of(path)) == "files":
            continue
        calls = writes(path.read_text(encoding="utf-8"))
        if others := [call for call in calls if call.split(" ")[1] != ALSO_WRITES.get(name)]:
            found[name] = others
    assert not found


# ---------------------------------------------------------------------------------------------------
# No pickles

PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# what reads or writes pickles under another name: torch's and pandas' files, NumPy's without its guard
UNPICKLING = {("torch", "load"), ("torch", "save"), ("numpy", "load"), ("np", "load"), ("jit", "load")}


def pickles(source: str) -> list[str]:
    """What in a source could read or write a pickle, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names if alias.name.split(".")[0] in PICKLING]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            pairs = {(module, alias.name) for alias in node.names}
            names = [module] if module in PICKLING else [f"{m}.{n}" for m, n in pairs & UNPICKLING]
        elif isinstance(node, ast.Attribute):
            owner = (
                node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            )
            pickling = (owner, node.attr) in UNPICKLING or node.attr in ("read_pickle", "to_pickle")
            names = [f"{owner}.{node.attr}"] if pickling else []
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            names = [str(node.arg)]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("__import__", "import_module"):
            words = {word.value for word in node.args if isinstance(word, ast.Constant)}
            names = sorted(str(word) for word in words & PICKLING)
        found += [f"{getattr(node, 'lineno', 0)} {name}" for name in names]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import torch\ntorch.load('x')",
        "from torch import save",
        "import numpy as np\nnp.load('x', allow_pickle=True)", "import marshal as m", "f(weights_only=False)",
        "def f():\n    import joblib.memory", "torch.jit.load('x')", "__import__('dill')",
    ],
)  # fmt: skip
def test_the_search_for_pickles_finds_them(source: str) -> None:
    assert pickles(source)


# `neuroada convert` reads weights that come only as pickles, in a process of its own that is shut off first
UNPICKLER, ITS_CALLS = "hub/unpickle.py", ["torch.load", "weights_only"]


def test_no_pickle_is_read_or_written_anywhere_but_in_the_process_of_convert() -> None:
    found = {str(p.relative_to(PACKAGE)): pickles(p.read_text(encoding="utf-8")) for p in SOURCES}
    read = found.pop(UNPICKLER)
    assert not {path: where for path, where in found.items() if where}
    assert sorted(word.split(" ")[1] for word in read) == ITS_CALLS


def test_the_process_that_reads_pickles_imports_nothing_of_ours_and_is_imported_by_nobody() -> None:
    source = (PACKAGE / UNPICKLER).read_text(encoding="utf-8")
    assert {name.split(".")[0] for name in imports(source)} - sys.stdlib_module_names == {"torch"}
    assert "weights_only=True" in source
    users = [p for p in SOURCES if "neuroada_cli.hub.unpickle" in imports(p.read_text(encoding="utf-8"))]
    assert not users


# ---------------------------------------------------------------------------------------------------
# The page


def test_the_page_shows_the_rooms_in_their_order_with_a_line_each() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:\.py|/)` \| \S", text, flags=re.M)
    assert tuple(rows) == ROOMS
