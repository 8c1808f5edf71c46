"""SIGINT, SIGTERM and SIGHUP to the whole command, in each of its phases and at random moments.

    python tests/faults/stops.py report.json ROOM phases|moments COUNT [SEED]

Every case is a forked child of a process that has everything imported; it runs `neuroada_cli.__main__.main`
with a command line, so Typer, reports and exit codes are the real ones. In a named phase the signal comes
from within: an audit hook sends it when the command opens, makes or renames a certain file.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from forked import FAILED, child
from kills import code_of
from tiny_run import tiny_llama_folder
from trees import tree

from neuroada_cli import __main__ as command
from neuroada_cli import files
from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands import merge, select, train
from neuroada_cli.selection.file import read_selection
from neuroada_cli.training.checkpoint import newest_complete

IMPORTED = (evaluate, merge, select, train)  # so that the children need not
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RECIPE = """
name: tiny
run_dir: {run}
device: cpu
model: {{path: {model}, dtype: fp32}}
select: {{k: 1}}
data: {{task: instruct, train: {rows}, validation_rows: 4, max_length: 256}}
train: {{epochs: 2, batch_size: 4, save_every: 1, keep: 1}}
eval: {{max_new_tokens: 2, batch_size: 2}}
"""
STOPPED = r"stopped by SIG(INT|TERM|HUP)"
KEPT = "the rows done so far are kept"


@dataclass(frozen=True)
class Phase:
    """Where in which command: at the count-th `event` of Python's audit hooks whose first words match."""

    command: str
    event: str
    place: str
    count: int = 1
    said: str = "nothing is left half written"


PHASES = {
    "train: reading rows": Phase("train", "open", r"rows\.jsonl$"),
    "train: reading the model's files": Phase("train", "open", r"model\.safetensors$"),
    "train: choosing": Phase("train", "open", r"model\.safetensors$", 8),
    "train: writing the selection": Phase("train", "os.rename", r"selection\.safetensors"),
    "train: between two steps": Phase("train", "open", r"metrics\.jsonl", 4, "after step"),
    "train: saving": Phase("train", "open", r"tmp-.*optimizer\.safetensors", 1, "after step"),
    "train: removing old checkpoints": Phase("train", "os.rename", r"/checkpoint-\d+$", 1, "after step"),
    "train: drawing": Phase("train", "open", r"training\.png"),
    "select: choosing": Phase("select", "open", r"model\.safetensors$", 6),
    "select: writing": Phase("select", "os.rename", r"chosen\.safetensors"),
    "merge: verifying the adapter": Phase("merge", "open", r"adapter_model\.safetensors$"),
    "merge: writing weights": Phase("merge", "open", r"tmp-.*model\.safetensors"),
    "merge: copying": Phase("merge", "open", r"tmp-.*tokenizer\.json"),
    "merge: taking the place": Phase("merge", "os.rename", r"\.out\.tmp-[^/]*$"),
    "eval: reading rows": Phase("eval", "open", r"rows\.jsonl$"),
    "eval: answering": Phase("eval", "open", r"partial\.jsonl$", 2, KEPT),
    "eval: writing results": Phase("eval", "open", r"tmp-", 2, KEPT),
}


class Room:
    """A model, rows, a finished run, and the command lines to work on them."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.folder = folder
        model, rows = tiny_llama_folder(folder / "llama"), folder / "rows.jsonl"
        lines = [json.dumps({"instruction": f"Say {n}", "output": str(n)}) for n in range(12)]
        rows.write_text("\n".join(lines), encoding="utf-8")
        for name in ("done", "new"):
            text = RECIPE.format(run=folder / name, model=model, rows=rows)
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        assert code_of(self.start("train", "done.yaml")) == 0, self.said()
        self.lines = {
            "train": ("train", "new.yaml"),
            "select": ("select", "done.yaml", "--out", "chosen.safetensors"),
            "merge": ("merge", "done", "out"),
            "eval": ("eval", "done", "--out", "answers"),
        }
        self.made = {"train": "new", "select": "chosen.safetensors", "merge": "out", "eval": "answers"}
        self.before = self.files()

    def seconds(self, name: str) -> float:
        """How long a command takes that nothing comes in between."""
        tries = []
        for _ in range(3):
            started = time.perf_counter()
            assert code_of(self.start(*self.lines[name])) == 0, self.said()
            tries.append(time.perf_counter() - started)
            self.clean(name)
        return min(tries)

    def start(self, *words: str, before: Callable[[], object] = lambda: None) -> int:
        """The pid of a child that runs a command line; what it says goes to two files."""
        return child(lambda: self._main(words, before))

    def _main(self, words: Sequence[str], before: Callable[[], object]) -> int:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(
                os.open(self.folder.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number
            )
        os.chdir(self.folder)
        sys.argv = ["neuroada", *words]
        before()
        try:
            command.command()
        except SystemExit as error:
            return int(error.code or 0)
        return FAILED

    def said(self) -> str:
        return self.folder.with_suffix(".stderr").read_text(encoding="utf-8")

    def files(self) -> dict[str, bytes | str | None]:
        return tree(self.folder)

    def clean(self, name: str) -> None:
        place = self.folder / self.made[name]
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)

    def case(
        self, name: str, stop: Callable[[int], object], hook: Callable[[], object], number: int, said: str
    ) -> bool:
        """One command that a signal comes to: how it ends, what it says and leaves. False: it was done."""
        pid = self.start(*self.lines[name], before=hook)
        stop(pid)
        code, text = code_of(pid), self.said()
        assert "Traceback" not in text, text
        temporary = [file for file in self.files() if re.search(r"\.(tmp|was)-|\.lock$", file)]
        assert not temporary, temporary
        if code == 0:
            self.clean(name)
            return False
        assert code == 128 + number, (code, text)
        line = text.strip().splitlines()[-1]
        assert re.search(rf"{STOPPED}.*{said}", line), text
        assert len(re.findall(STOPPED, text)) == 1, text
        place = self.folder / self.made[name]
        if name in ("select", "merge"):  # whole or not there at all
            if place.exists():
                files.verify_folder(place) if place.is_dir() else read_selection(place)
                self.clean(name)
            assert self.files() == self.before, f"left behind: {set(self.files()) ^ set(self.before)}"
        elif name == "train" and place.is_dir() and "after step" in line:
            step = int(re.findall(r"after step (\d+)", line)[0])
            newest = newest_complete(place)
            assert (newest.name if newest else "checkpoint-0") == f"checkpoint-{step}", (newest, line)
        again = ["--resume"] if name == "train" else []
        assert code_of(self.start(*self.lines[name], *again)) == 0, self.said()
        self.clean(name)
        return True


def sending(phase: Phase, number: int) -> Callable[[], None]:
    """In the child: an audit hook that sends the signal at the phase's place."""

    def arm() -> None:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event == phase.event and re.search(phase.place, str(arguments[0])):
                seen += 1
                if seen == phase.count:
                    os.kill(os.getpid(), number)

        sys.addaudithook(hook)

    return arm


def phases(room: Room, count: int, chance: random.Random) -> Counter[str]:
    """Every phase, each with `count` of the signals."""
    found: Counter[str] = Counter()
    for position, (name, phase) in enumerate(PHASES.items()):
        for turn in range(count):
            number = SIGNALS[(position + turn) % len(SIGNALS)]
            stopped = room.case(phase.command, lambda _: None, sending(phase, number), number, phase.said)
            assert stopped, f"{name}: the signal never came"
            found[f"{phase.command}: stopped, then done"] += 1
    return found


def moments(room: Room, count: int, chance: random.Random) -> Counter[str]:
    """At random moments of the whole command: which phase is left to chance."""
    found: Counter[str] = Counter()
    names = list(room.lines)
    seconds = {name: room.seconds(name) for name in names}
    while found["stopped, then done"] < count:
        turn = found.total()
        assert turn < 20 + 5 * count, f"hardly one was stopped: {found}"
        name, number = names[turn % len(names)], SIGNALS[turn // len(names) % len(SIGNALS)]

        def stop(pid: int, name: str = name, number: int = number) -> None:
            time.sleep(chance.uniform(0.02, 0.9 * seconds[name]))
            os.kill(pid, number)

        stopped = room.case(name, stop, lambda: None, number, "")
        found["stopped, then done" if stopped else "all was done"] += 1
    return found


def main() -> None:
    report, room, kind, count = sys.argv[1:5]
    chance = random.Random(int(sys.argv[5]) if sys.argv[5:] else 0)
    work = functools.partial({"phases": phases, "moments": moments}[kind], Room(Path(room) / "room"))
    Path(report).write_text(json.dumps(work(int(count), chance)), encoding="utf-8")


if __name__ == "__main__":
    main()
