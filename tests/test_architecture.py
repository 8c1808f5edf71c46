"""The layers of docs/architecture.md, read from the source: imports go down only."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "neuroada_cli"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Bottom to top. A module may import from its own layer and from those before it; everything that is not
# named here is the middle.
LOWEST = {"errors", "", "allocator", "foreign_text"}  # "" is the package itself (its version)
LOW = {"delta", "recipe", "strict_yaml"}
TOP = {"cli", "cli_recipes", "options", "failures", "quickstart", "suites", "__main__"}
LOWEST_LEVEL, LOW_LEVEL, MIDDLE_LEVEL, COMMAND_LEVEL, TOP_LEVEL = range(5)

# The only things outside the standard library that a part may import.
ALLOWED_OUTSIDE = {
    "errors": set(),
    "foreign_text": {"rich"},
    "delta": {"torch", "triton", "bitsandbytes"},
    "recipe": {"pydantic", "yaml"},
    "strict_yaml": {"yaml"},
    "cli": {"typer"},
    "cli_recipes": {"typer"},
    "options": {"typer"},
    "failures": set(),
}


def part_of(path: Path) -> str:
    """delta/linear.py -> "delta", recipe.py -> "recipe", __init__.py -> ""."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def level(part: str) -> int:
    if part in LOWEST:
        return LOWEST_LEVEL
    if part in LOW:
        return LOW_LEVEL
    if part in TOP:
        return TOP_LEVEL
    return COMMAND_LEVEL if part == "commands" else MIDDLE_LEVEL


def imports(path: Path) -> set[str]:
    """Every imported module as a dotted name, also those inside functions; `from a import b` gives a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inside(names: set[str]) -> set[str]:
    """The parts of our own package among imported names."""
    parts = set()
    for name in names:
        if name.split(".")[0] == "neuroada_cli":
            part = [*name.split("."), ""][1]
            known = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()
            parts.add(part if known else "")
    return parts


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = level(part_of(path))
    upward = {part for part in inside(imports(path)) if level(part) > own}
    assert not upward, f"{path.relative_to(ROOT)} imports from a higher layer: {upward}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_low_layers_import_only_what_they_may(path: Path) -> None:
    part = part_of(path)
    if part in LOW:
        own = inside(imports(path)) - {part}
        assert own <= LOWEST | {"strict_yaml"}, f"{part} stands alone, but imports {own - LOWEST}"
    if part in ALLOWED_OUTSIDE:
        outside = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"neuroada_cli"}
        assert outside <= ALLOWED_OUTSIDE[part], f"{path.relative_to(ROOT)} imports {outside}"


def test_commands_never_import_each_other() -> None:
    for path in SOURCES:
        if part_of(path) == "commands":
            others = {name for name in imports(path) if name.startswith("neuroada_cli.commands")}
            assert not others, f"{path.name} imports {others}"


def test_only_hub_loads_models_through_transformers() -> None:
    loader = re.compile(r"\.from_pretrained\(|\bAutoModel\w*|\bAutoTokenizer\b|\bAutoConfig\b")
    users = {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        if part_of(path) != "hub" and loader.search(path.read_text(encoding="utf-8"))
    }
    assert not users


def test_only_files_writes() -> None:
    """Everything that is written goes through one writer, so that nothing is ever half written."""
    writers = {"write_text", "write_bytes", "save_file", "dump"}
    found = set()
    for path in SOURCES:
        if part_of(path) == "files":
            continue
        for call in (
            n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)
        ):
            if isinstance(call.func, ast.Attribute) and call.func.attr in writers:
                owner = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
                if owner != "files":
                    found.add(f"{path.relative_to(PACKAGE)}:{call.lineno} {owner}.{call.func.attr}")
    assert not found


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


def test_no_pickle_is_read_or_written_anywhere() -> None:
    found = {str(p.relative_to(PACKAGE)): pickles(p.read_text(encoding="utf-8")) for p in SOURCES}
    assert not {path: where for path, where in found.items() if where}


def test_every_part_is_in_the_map() -> None:
    """A module that docs/architecture.md does not name is one that nobody will find."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    parts = {part_of(path) for path in SOURCES} - {"", "__main__"}
    missing = {part for part in parts if not re.search(rf"`{part}(\.py|/)", text)}
    assert not missing
