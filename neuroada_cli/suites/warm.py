"""A process that has imported what every cell needs, and forks one for each.

    python -m neuroada_cli.suites.warm

Importing torch and the models' code is most of what a short training takes of the processor. Here it is
done once for all cells of a suite. A cell still has a process of its own, with the same start as any other:
nothing has been computed before the fork, and no device was touched. Only what the libraries themselves take
of the memory (some 0.1 GB) is not in its peak, and their import not in its seconds. Orders come in and news
goes out as lines of JSON:

    in   {"start": 3, "words": ["FOLDER", "tasks"], "log": "FOLDER/log.txt"}, {"signal": 15}
    out  {"ended": 3, "code": 0}

It ends when its input does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroada_cli.machine import collector, kernels

LOOK_SECONDS = 0.05  # between two looks at who has ended, while any runs
IMPORTED = (
    "neuroada_cli.commands.train",
    "neuroada_cli.commands.eval",
    "transformers.modeling_layers",  # with it what all models share
    "transformers.activations",
    "transformers.generation.utils",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)


@dataclass(eq=False)
class Forked:
    """One cell's process, as `subprocess.Popen` shows its own. It is signalled by way of the one that forked
    it, which alone knows whether the number is still that child's."""

    warm: Warm
    number: int
    ended: threading.Event = field(default_factory=threading.Event)
    code: int | None = None  # None once it has ended: the process that forked it was lost

    def send_signal(self, number: int) -> None:
        self.warm.order({"signal": number, "to": self.number})

    def wait(self) -> int:
        """The exit code; -9 where the process that forked it was killed."""
        self.ended.wait()
        return -signal.SIGKILL if self.code is None else self.code


class Warm:
    """The process, from the side of whoever runs the suite."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what is amiss with an import a cell says in its own log
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the cells by way of the runner
        )
        self._lock = threading.Lock()
        self._cells: dict[int, Forked] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.alive = True
        self._reader.start()

    def start(self, words: Sequence[str], log: Path) -> Forked:
        """Fork a cell, which writes what it says at the end of `log`. Raises OSError where it is gone."""
        with self._lock:
            if not self.alive:
                raise BrokenPipeError("the process that forks the cells has ended")
            cell = Forked(self, len(self._cells))
            self._cells[cell.number] = cell
        self.order({"start": cell.number, "words": list(words), "log": str(log)})
        return cell

    def order(self, what: dict[str, Any]) -> None:
        """One line, in one write: it is also called from within a signal's handler."""
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), json.dumps(what).encode() + b"\n")

    def close(self) -> None:
        """No more cells."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            cell = self._cells[told["ended"]]
            cell.code = told["code"]
            cell.ended.set()
        with self._lock:
            self.alive = False
        for cell in self._cells.values():
            cell.ended.set()


def main() -> None:
    news = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library says as it is imported is no news
    collector.spare()
    kernels.keep_out()
    for module in IMPORTED:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is here stays: the collector of a cell need not look at it, which would copy its pages
    running: dict[int, int] = {}  # process id -> number of the cell
    waiting = b""
    while True:
        ready, _, _ = select.select([0], [], [], LOOK_SECONDS if running else None)
        if ready:
            came = os.read(0, 65536)
            if not came:
                return
            *lines, waiting = (waiting + came).split(b"\n")
            for line in lines:
                _obey(json.loads(line), running, news)
        _tell_ended(running, news)


def _obey(order: dict[str, Any], running: dict[int, int], news: int) -> None:
    if "start" not in order:
        for process, number in running.items():
            if number == order["to"]:
                os.kill(process, order["signal"])
        return
    process = os.fork()
    if process == 0:
        os.close(news)
        _become(order["words"], order["log"])
    running[process] = order["start"]


def _tell_ended(running: dict[int, int], news: int) -> None:
    for process in list(running):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            told = {"ended": running.pop(process), "code": os.waitstatus_to_exitcode(status)}
            os.write(news, json.dumps(told).encode() + b"\n")


def _become(words: Sequence[str], log: str) -> None:
    """The forked child: a cell as if it had been started by itself. Never returns."""
    code = 1
    try:
        os.setsid()
        nothing, to_log = (
            os.open(os.devnull, os.O_RDONLY),
            os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
        )
        for descriptor, ours in ((nothing, 0), (to_log, 1), (to_log, 2)):
            os.dup2(descriptor, ours)
        from neuroada_cli.suites import cell

        sys.argv = [str(cell.__file__), *words]
        cell.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
