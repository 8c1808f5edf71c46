"""Reading what strangers made imports nothing, starts nothing, opens no connection and writes nothing."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from counting import record
from tiny_adapter import CONFIG, TENSORS, change_config, reseal, tiny_selection, write

from neuroada_cli import files
from neuroada_cli.selection.file import write_selection

# Runs in a process of its own: an audit hook cannot be taken away again.
READER = """
import os, socket, sys
from pathlib import Path
from neuroada_cli.adapter.find import find_adapter
from neuroada_cli.adapter.folder import read_adapter
from neuroada_cli.data.reading import read_file
from neuroada_cli.errors import UserError
from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.selection.file import read_selection

# once without the hook: what the readers themselves import late is no work of the files
readers = {"adapter": read_adapter, "run": lambda path: read_adapter(find_adapter(path)),
           "selection": read_selection, "recipe": load_recipe, "rows": lambda path: read_file(Path(path))}
cases = [line.split(" ", 2) for line in open(sys.argv[1]).read().splitlines()]
for kind, expected, path in cases:
    if expected == "good":
        readers[kind](path)

FORBIDDEN = ("import", "exec", "compile", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn",
             "os.spawn", "socket.", "urllib.", "http.", "pickle.", "marshal.", "ctypes.", "os.remove",
             "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
             "shutil.", "webbrowser.", "code.__new__", "os.putenv", "os.kill")
events, watching = [], False

def hook(event, arguments):
    if not watching:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (
        os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    if writes or event.startswith(FORBIDDEN):
        events.append((event, str(arguments)[:200]))

sys.addaudithook(hook)
# what the hook must see, or it would prove nothing
sys.modules.pop("colorsys", None)  # whoever brought it in, it is to be brought in once more
deeds = {"import": lambda: __import__("colorsys"), "open": lambda: open("x", "w"),
         "os.mkdir": lambda: os.mkdir("y"),
         "os.system": lambda: os.system("true"), "socket.__new__": lambda: socket.socket(),
         "compile": lambda: eval("1"), "os.symlink": lambda: os.symlink("x", "z")}
for name, deed in deeds.items():
    watching = True
    deed()
    watching = False
    assert name in {event for event, _ in events}, (name, events)
    events.clear()
modules = set(sys.modules)
refused = 0
for kind, expected, path in cases:
    watching = True
    try:
        readers[kind](path)
        outcome = "good"
    except UserError:
        outcome = "bad"
        refused += 1
    finally:
        watching = False
    assert outcome == expected, (kind, path, outcome)
assert not events, events
assert set(sys.modules) == modules, set(sys.modules) - modules
print(refused)
"""


class Bomb:
    """A pickle that would tell."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("open('bomb', 'w')",))


@pytest.fixture
def cases(tmp_path: Path) -> list[str]:
    """Lines "reader expectation path"."""
    lines: list[str] = []

    def adapter(name: str, expected: str = "bad") -> Path:
        lines.append(f"adapter {expected} {tmp_path / name}")
        return write(tmp_path / name)

    adapter("good", "good")
    change_config(adapter("auto-map"), lambda c: c.update(auto_map={"AutoModel": "evil.py--Evil"}))
    change_config(adapter("imports"), lambda c: c.update(peft_type="os.system"))
    change_config(adapter("class"), lambda c: c.update(auto_mapping={"base_model_class": "Evil"}))
    change_config(adapter("path", "good"), lambda c: c.update(base_model_name_or_path="/etc/passwd"))
    change_config(adapter("url", "good"), lambda c: c.update(base_model_name_or_path="http://127.0.0.1:9/x"))
    change_config(adapter("escape"), lambda c: c.update(base_model_name_or_path="\x1b]0;x\x07"))
    change_config(adapter("targets"), lambda c: c.update(target_modules=["__import__('os').system('id')"]))
    pickled = adapter("pickle")
    (pickled / TENSORS).write_bytes(pickle.dumps(Bomb()))
    reseal(pickled)
    hidden = adapter("beside", "good")
    (hidden / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    (hidden / "adapter_model.py").write_text("open('bomb', 'w')")
    (adapter("climbs") / files.MANIFEST).write_text(
        json.dumps({"format": 1, "files": {"../good/recipe.yaml": {"bytes": 1, "sha256": "0" * 64}}})
    )
    linked = adapter("linked")
    shutil.move(linked / CONFIG, tmp_path / "elsewhere.json")
    (linked / CONFIG).symlink_to(tmp_path / "elsewhere.json")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best").symlink_to("/proc/self/cwd")
    (tmp_path / "run" / "last").symlink_to(tmp_path / "good")
    lines.append(f"run bad {tmp_path / 'run'}")
    write_selection(tmp_path / "selection", tiny_selection())
    lines.append(f"selection good {tmp_path / 'selection'}")
    torch.save({"x": Bomb()}, tmp_path / "selection.pt")
    lines.append(f"selection bad {tmp_path / 'selection.pt'}")
    good = "name: x\nmodel: {path: some/model}\ndata: {task: rte}\n"
    recipes = {
        "good": good,
        "tag": good + "description: !!python/object/apply:os.system ['id']\n",
        "new": good + "description: !!python/object/new:subprocess.Popen [id]\n",
        "module": good + "description: !!python/module:antigravity\n",
        "anchors": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "include": good + "description: !include /etc/passwd\n",
        "deep": "[" * 5000,
    }
    for name, text in recipes.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        lines.append(f"recipe {'good' if name == 'good' else 'bad'} {tmp_path / name}.yaml")
    for name, data in {"good": b'{"a": 1}\n', "bad": pickle.dumps(Bomb()), "nan": b'{"a": NaN}'}.items():
        (tmp_path / f"{name}.jsonl").write_bytes(data)
        lines.append(f"rows {'good' if name == 'good' else 'bad'} {tmp_path / name}.jsonl")
    return lines


def test_hostile_files_bring_nothing_about(cases: list[str], tmp_path: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    (tmp_path / "cases").write_text("\n".join(cases))
    (tmp_path / "cwd").mkdir()
    command = [sys.executable, "-c", READER, str(tmp_path / "cases")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "cwd")
    assert done.returncode == 0, done.stderr
    refused = sum(" bad " in line for line in cases)
    assert int(done.stdout) == refused > 15
    made = {tmp_path / name for name in ("cases", "cwd", "cwd/x", "cwd/y", "cwd/z")}
    after = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert set(after) - set(before) == made
    assert all(after[path] == before[path] for path in before)
    record("hostile files under an audit hook", {"read or refused, nothing brought about": len(cases)})
