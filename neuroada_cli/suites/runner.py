"""Runs a suite: trials on validation rows, then every seed, each cell in a process of its own; what came out.

OUT/cells/<hash>/   recipe.yaml, run/, eval/, trained.json, forgetting.json, scored.json, log.txt
    results.json    every cell of this suite and what was tuned
    table.md        mean and sample standard deviation over seeds
    plot.png
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from neuroada_cli import files, hub, stopping
from neuroada_cli.errors import DataError, PeerError, Stopped
from neuroada_cli.machine.load import machine
from neuroada_cli.recipe.load import to_yaml
from neuroada_cli.recipe.schema import Recipe
from neuroada_cli.show.figures import drawn
from neuroada_cli.show.notes import say
from neuroada_cli.show.numbers import counted
from neuroada_cli.suites import cell as cells
from neuroada_cli.suites import grid, tables
from neuroada_cli.suites.grid import Cell
from neuroada_cli.suites.inputs import changed, inputs
from neuroada_cli.suites.schema import Overrides, Suite
from neuroada_cli.suites.warm import Forked, Warm
from neuroada_cli.tasks.loss_mask import loss_mask_of
from neuroada_cli.tasks.registry import get_protocol, get_task

CELLS, RESULTS = "cells", "results.json"
SCORING: dict[bool | str, str] = {True: "tasks", "loss": "loss"}  # a suite's `score` -> a key of SCORED
REUSED = "reused"  # marks what came out of a cell that was run elsewhere
KEY = re.compile(r"[0-9a-f]{16}")


@dataclass
class _Children:
    """The running processes, so that a signal reaches them all."""

    stopped: bool = False
    running: set[subprocess.Popen[bytes] | Forked] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for child in self.running:
                child.send_signal(signal.SIGTERM)  # which saves a checkpoint first


def run(
    suite: Suite,
    out: Path | None = None,
    extra: Overrides | None = None,
    jobs: int = 1,
    keep_runs: bool = False,
    reuse: Path | None = None,
) -> dict[str, Any]:
    """Run what is not done yet, print the table, and return what results.json holds.

    out        default runs/suites/NAME; a finished cell is found there again by the hash of its content
    extra      recipe keys changed in every cell (`--set`)
    jobs       cells at once, each with its share of the processor's cores
    keep_runs  keep the checkpoints of finished cells
    reuse      results.json of an earlier suite: cells with the same content are taken from there
    Raises RecipeError before anything runs, PeerError when cells failed (the others are done and written),
    OutputError when another process works in the folder, Stopped after Ctrl-C or SIGTERM.
    """
    out = out or Path("runs") / "suites" / suite.name
    extra = extra or {}
    console = Console(stderr=True)
    suite.refuse(extra)
    for label, variant in grid.places(suite):  # every mistake shows before the first run
        grid.trials(suite, label, variant, extra)
        grid.cell(suite, label, variant, suite.seeds[0], {}, extra)
    earlier = read_results(reuse) if reuse else None
    with files.Lock(out), contextlib.closing(_Runner(out / CELLS, jobs, keep_runs, console)) as runner:
        if earlier:
            _take_over(earlier, out / CELLS)
        trials = [cell for place in grid.places(suite) for cell in grid.trials(suite, *place, extra)]
        runner.all(trials, "trial")
        chosen = {place: _chosen(runner, grid.trials(suite, *place, extra)) for place in grid.places(suite)}
        for variant, other in suite.untuned.items():
            chosen |= {(label, variant): chosen[label, other] if other else {} for label in suite.recipes}
        todo = [
            grid.cell(suite, label, variant, seed, tuned, extra)
            for (label, variant), tuned in chosen.items()
            if tuned is not None
            for seed in suite.seeds
        ]
        needed = {cell.key for cell in todo}
        runner.drop_checkpoints(cell for cell in trials if cell.key not in needed)
        try:
            runner.all(todo, "run", _scoring(suite), forgetting=True)
            runner.drop_checkpoints(todo)  # of what nothing was measured, too
        finally:  # what is done is shown, even if the rest was stopped
            found = _results(suite, runner, trials, todo, extra)
            files.write_json(out / RESULTS, found)
            files.write_text(out / "table.md", tables.markdown(found))
            drawn(lambda: tables.draw(found, out / "plot.png"), out / "plot.png")
    Console().print(tables.table(found))
    say(console, f"everything is in {out}")
    if runner.failed:
        name, line = next(iter(runner.failed.items()))
        raise PeerError(
            f"{counted(len(runner.failed), 'cell')} failed; the first: {line}", str(out / CELLS / name)
        )
    return found


class _Runner:
    def __init__(self, folder: Path, jobs: int, keep_runs: bool, console: Console) -> None:
        self.folder, self.jobs, self.keep_runs, self.console = folder, jobs, keep_runs, console
        self.children = _Children()
        self.failed: dict[str, str] = {}
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        self.environment = os.environ | ({"OMP_NUM_THREADS": threads} if jobs > 1 else {})
        self.warm: Warm | None = None
        self.warming = threading.Lock()

    def all(
        self, todo: Sequence[Cell], kind: str, score: str | None = None, forgetting: bool = False
    ) -> None:
        """Run every cell that is not done; equal cells once.

        score       how: a key of SCORED; None trains only
        forgetting  measure `eval.forgetting` where the recipe has it; it decides nothing among trials
        """
        unique = {cell.key: cell for cell in todo}
        for cell in unique.values():
            self._look_at_inputs(cell)
        scored = [score] if score else []
        passes = {
            key: [cells.FORGETTING, *scored] if forgetting and cell.recipe.eval.forgetting else scored
            for key, cell in unique.items()
        }
        left = [cell for key, cell in unique.items() if not self.done(key, passes[key])]
        if len(unique) > len(left):
            done = f"{len(unique) - len(left)} of {len(unique)} {kind}s are done already"
            self.console.print(done, highlight=False)
        with stopping.Noted(lambda _: self.children.stop()) as stop, ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._one, cell, passes[cell.key]) for cell in left]
            for number, (cell, future) in enumerate(zip(left, futures, strict=True), start=1):
                seconds = future.result()
                if seconds is not None:
                    self._tell(f"{kind} {number}/{len(left)}", cell, seconds)
        if stop.requested is not None:
            raise Stopped(
                stop.requested,
                "stopped; finished cells and checkpoints are kept",
                "start it again to go on from there",
            )

    def _look_at_inputs(self, cell: Cell) -> None:
        """A cell that was made of other files under the same names is no result of this suite: one of a
        result file is not taken over. Raises DataError for one that was run here.
        """
        found = self.trained(cell.key)
        now = inputs(cell.recipe) if found and found.get(cells.INPUTS) else {}
        name = changed(found[cells.INPUTS], now) if found and now else None
        if name is None or found is None:
            return
        if not found.get(REUSED):
            raise DataError(
                f"has changed since {self.folder / cell.key} was run with it", name,
                "name another folder with --out",
            )  # fmt: skip
        files.remove_folder(self.folder / cell.key)
        place = f"{cell.label}, {cell.variant}, seed {cell.seed}"
        say(self.console, f"{place}: is not taken over, {name} has changed since", markup=False)

    def drop_checkpoints(self, finished: Iterable[Cell]) -> None:
        """Of cells that nothing is left to be measured of; not of those that failed."""
        for cell in finished:
            if not self.keep_runs and cell.key not in self.failed and self.done(cell.key, ()):
                shutil.rmtree(self.folder / cell.key / cells.RUN, ignore_errors=True)

    def stopped(self) -> bool:
        return self.children.stopped

    def done(self, key: str, passes: Sequence[str]) -> bool:
        return all(cells.done(self.folder / key, each) for each in (None, *passes))

    def trained(self, key: str) -> dict[str, Any] | None:
        return cells.trained(self.folder / key)

    def _tell(self, what: str, cell: Cell, seconds: float) -> None:
        trained = self.trained(cell.key)
        if cell.key in self.failed or trained is None:
            shown = f"failed: {self.failed[cell.key]}"
        elif trained["best_value"] is None:
            shown = f"loss {trained['loss']:.4f}"
        else:
            shown = f"validation {trained['metric'] or 'loss'} {trained['best_value']:.4f}"
        tuned = "".join(f", {key}={value:g}" for key, value in cell.tuned.items())
        place = f"{cell.label}, {cell.variant}, seed {cell.seed}{tuned}"
        say(self.console, f"{what}  {place}: {shown}  ({seconds:.0f} s)", markup=False)

    def _one(self, cell: Cell, passes: Sequence[str]) -> float | None:
        """Run one cell; returns its seconds, None when it was stopped before it began."""
        if self.stopped():
            return None
        folder = self.folder / cell.key
        folder.mkdir(parents=True, exist_ok=True)
        recipe = cell.recipe.model_copy(update={"run_dir": str(folder / cells.RUN)})
        files.write_text(folder / cells.RECIPE, to_yaml(recipe))
        started = time.perf_counter()
        with self.children.lock:
            if self.children.stopped:
                return None
            child = self._start(recipe, [str(folder), *passes], folder / "log.txt")
            self.children.running.add(child)
        code = child.wait()
        with self.children.lock:
            self.children.running.discard(child)
        if self.stopped():
            return None
        if code:
            lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
            last = next((line for line in reversed(lines) if line.strip()), "no message")
            self.failed[cell.key] = f"{last.strip()} (exit code {code})"
        elif passes and not self.keep_runs:
            shutil.rmtree(folder / cells.RUN, ignore_errors=True)
        return time.perf_counter() - started

    def _start(self, recipe: Recipe, words: Sequence[str], log: Path) -> subprocess.Popen[bytes] | Forked:
        """The process of a cell, in a session of its own: Ctrl-C in the terminal reaches it by way of us, and
        only once.
        """
        with files.open_log(log) as said:
            if _forks(recipe):
                with self.warming, contextlib.suppress(OSError):  # gone: killed where memory ran out
                    self.warm = self.warm or Warm(self.environment)
                    return self.warm.start(words, log)
            command = [sys.executable, "-m", cells.__name__, *words]
            return subprocess.Popen(
                command, stdout=said, stderr=said, env=self.environment, start_new_session=True
            )

    def close(self) -> None:
        """No more cells."""
        if self.warm is not None:
            self.warm.close()


def _forks(recipe: Recipe) -> bool:
    """Whether its cell may be forked from a process that has imported libraries already: not where one of
    them may have touched a GPU meanwhile, nor where trusted code decides what they find (`machine.kernels`).
    """
    if sys.platform != "linux" or recipe.model.trust_remote_code:
        return False
    return recipe.device == "cpu" or (recipe.device is None and hub.choose_device() == "cpu")


def read_results(path: Path) -> dict[str, Any]:
    """A results.json. Raises DataError for a file that is none."""
    found: dict[str, Any] = files.read_json(path, DataError)
    runs = [*found.get("trials", ()), *found.get("runs", ())] if isinstance(found, dict) else []
    whole = runs and {"suite", "trials", "runs"} <= found.keys() and "score" in found["suite"]
    if not whole or not all(isinstance(run, dict) and {"key", "trained"} <= run.keys() for run in runs):
        raise DataError("is not the result file of a suite", str(path), "name the results.json of one")
    return found


def _take_over(earlier: dict[str, Any], folder: Path) -> None:
    """Lay finished cells of a result file where the runner finds them by their hash."""
    scoring = SCORING.get(earlier["suite"]["score"])
    for run in [*earlier["trials"], *earlier["runs"]]:
        place = folder / str(run["key"])
        if not run["trained"] or run.get("failed") or not KEY.fullmatch(place.name):
            continue
        place.mkdir(parents=True, exist_ok=True)
        if not (place / cells.TRAINED).is_file():
            files.write_json(place / cells.TRAINED, run["trained"] | {REUSED: True})
        if scoring and run.get("scores") and not (place / cells.SCORED[scoring]).is_file():
            files.write_json(place / cells.SCORED[scoring], run["scores"])


def _scoring(suite: Suite) -> str | None:
    """How its cells are scored once they are trained: a key of SCORED."""
    return SCORING.get(suite.score)


def _loss_mask(recipe: Recipe) -> str:
    """What of a row the loss is on."""
    return loss_mask_of(recipe.data, get_task(recipe.data.task), get_protocol(recipe.data.protocol))


def _chosen(runner: _Runner, trials: Sequence[Cell]) -> dict[str, Any] | None:
    """The values of the best trial on validation rows; None when every trial failed."""
    if not trials:
        return {}
    scored = [(cell, found) for cell in trials if (found := runner.trained(cell.key))]
    best: tuple[float, Cell] | None = None
    for cell, found in scored:
        value = found["best_value"]
        if value is None:
            continue
        worth = value if found["metric"] is not None else -value
        if best is None or worth > best[0]:
            best = (worth, cell)
    return best[1].tuned if best else None


def _results(
    suite: Suite, runner: _Runner, trials: Sequence[Cell], runs: Sequence[Cell], extra: Overrides
) -> dict[str, Any]:
    scoring = _scoring(suite)

    def facts(cell: Cell, scores: str | None = None) -> dict[str, Any]:
        found = {
            "recipe": cell.label,
            "variant": cell.variant,
            "seed": cell.seed,
            "tuned": cell.tuned,
            "key": cell.key,
            "trained": runner.trained(cell.key),
            "failed": runner.failed.get(cell.key),
        }
        return found | ({"scores": cells.scores(runner.folder / cell.key, scores)} if scores else {})

    return {
        "suite": suite.model_dump(mode="json"),
        "overrides": extra,
        "protocols": sorted({cell.recipe.data.protocol for cell in runs}),
        "loss_masks": sorted({_loss_mask(cell.recipe) for cell in runs}),
        "trials": [facts(cell) for cell in trials],
        "runs": [facts(cell, scoring) for cell in runs],
        "machine": machine(),
    }
