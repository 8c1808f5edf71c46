"""What an evaluation keeps in its folder, so that it can be read, compared and continued.

predictions/<task>.jsonl           every row, in the source's order
predictions/<task>.partial.jsonl   the batches of an evaluation that is not finished
results.json                       task -> scores, and everything they depend on
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroada_cli import files
from neuroada_cli.errors import DataError, OutputError
from neuroada_cli.evaluation.results import Prediction, TaskResult

About = dict[str, Any]  # all settings, model and data behind a score; what differs cannot be compared


@dataclass
class Progress:
    """What is done of a task: row number -> prediction, seconds spent, tokens generated.

    left  rows that were done under other settings, and are not used; other: which settings these are
    """

    done: dict[int, Prediction] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: int = 0
    left: int = 0
    other: str = ""

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "done": [row.as_json() for row in self.done.values()]}

    @classmethod
    def of(cls, told: dict[str, Any]) -> Progress:
        """What `as_json` gave."""
        rows = [Prediction(**row) for row in told["done"]]
        return cls(
            {row.row: row for row in rows}, told["seconds"], told["tokens"], told["left"], told["other"]
        )


class Records:
    """The files of one evaluation folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._summary = folder / "results.json"

    def finished_file(self, task: str) -> Path:
        return self.folder / "predictions" / f"{task}.jsonl"

    def _partial_file(self, task: str) -> Path:
        return self.folder / "predictions" / f"{task}.partial.jsonl"

    def refuse_finished(self, tasks: Sequence[str]) -> None:
        """Raises OutputError when nothing is left to do, DataError for a broken results.json."""
        self._results()
        if all(self.finished_file(task).exists() for task in tasks):
            raise OutputError(
                "exists", str(self.finished_file(tasks[0])), "add --overwrite, or choose another --out"
            )

    def finished(self, task: str, about: About) -> tuple[list[Prediction], TaskResult] | None:
        """A task that an interrupted evaluation under the same settings has done completely.

        Raises OutputError for one that was done under other settings.
        """
        file = self.finished_file(task)
        if not file.exists():
            return None
        entry = self._results().get(task, {})
        if entry.get("settings") != _key(about):
            other = _differences(entry, about)
            raise OutputError(
                f"exists, made under other settings{f' ({other})' if other else ''}",
                str(file),
                "add --overwrite, or choose another --out",
            )
        names = {f.name for f in dataclasses.fields(TaskResult)}
        try:
            lines = file.read_text(encoding="utf-8").split("\n")  # splitlines would also cut at U+2028
            predictions = [Prediction(**json.loads(line)) for line in lines if line]
            return predictions, TaskResult(**{key: value for key, value in entry.items() if key in names})
        except (OSError, ValueError, TypeError):
            raise OutputError("is not what eval wrote", str(file), "add --overwrite") from None

    def resume(self, task: str, about: About) -> Progress:
        """What an interrupted evaluation under the same settings has done; else a new work file, and how many
        rows had been done under which other ones.

        Call it, and what writes below, while holding the folder's Lock.
        """
        self._clean()
        file = self._partial_file(task)
        head = json.dumps({"settings": _key(about), "about": about}, sort_keys=True)
        progress, left = Progress(), Progress()
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            lines = text.split("\n")[:-1]  # what follows the last line break was cut off by a kill
            same = lines[:1] == [head]
            whole = _read_batches(lines[1:], progress) if same else 0
            if not same and _read_batches(lines[1:], before := Progress()):
                left = Progress(left=len(before.done), other=_differences(_about_of(lines[0]), about))
            if whole:
                kept = "\n".join(lines[: 1 + whole]) + "\n"
                if kept != text:
                    files.write_text(file, kept)
                return progress
        with files.explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(file, head + "\n")
        return left

    def add(self, task: str, batch: Sequence[Prediction], seconds: float, tokens: int) -> None:
        """Keep a batch; seconds and tokens count from the task's start.

        One line per batch, so that going on cuts the remaining rows into the same batches.
        """
        rows = [prediction.as_json() for prediction in batch]
        files.append_jsonl(
            self._partial_file(task), {"rows": rows, "seconds": round(seconds, 3), "tokens": tokens}
        )

    def finish(self, task: str, predictions: Sequence[Prediction], result: TaskResult, about: About) -> None:
        """Write results.json, then the predictions (their presence says "finished"), drop the work file.

        Predictions of an earlier evaluation go first: a kill must not leave them beside other scores.
        """
        self._clean()
        lines = [json.dumps(p.as_json(), ensure_ascii=False) + "\n" for p in predictions]
        entry = dataclasses.asdict(result) | about | {"settings": _key(about)}
        results = self._results()
        with files.explained(self.folder):
            self.finished_file(task).parent.mkdir(parents=True, exist_ok=True)
            self.finished_file(task).unlink(missing_ok=True)
        files.write_json(self._summary, results | {task: entry})
        files.write_text(self.finished_file(task), "".join(lines))
        self._partial_file(task).unlink(missing_ok=True)

    def _clean(self) -> None:
        """Remove what killed writers left half written."""
        for folder in (self.folder, self.folder / "predictions"):
            files.clean_stale(folder)

    def _results(self) -> dict[str, Any]:
        if not self._summary.is_file():
            return {}
        results = files.read_json(self._summary, DataError)
        if not isinstance(results, dict) or not all(isinstance(entry, dict) for entry in results.values()):
            raise DataError("is not what eval wrote", str(self._summary), "choose another --out")
        return results


def _key(about: About) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _about_of(head: str) -> About:
    """What the first line of a work file says of its settings; older ones say nothing."""
    try:
        about = json.loads(head)["about"]
    except (ValueError, TypeError, KeyError):
        return {}
    return about if isinstance(about, dict) else {}


def _differences(was: About, now: About, above: str = "") -> str:
    """The names of settings that are not as they were; "" where it is not known what they were."""
    if not was:
        return ""
    found = []
    for name, value in json.loads(json.dumps(now)).items():
        before = was.get(name)
        if before == value:
            continue
        inner = _differences(before, value, f"{above}{name}.") if isinstance(before, dict) else ""
        found.append(inner if inner and isinstance(value, dict) else f"{above}{name}")
    return ", ".join(found)


def _read_batches(lines: Sequence[str], progress: Progress) -> int:
    """Adds batches up to the first line that is not whole; returns how many."""
    for number, line in enumerate(lines):
        try:
            batch = json.loads(line)
            rows = [Prediction(**row) for row in batch["rows"]]
            seconds, tokens = float(batch["seconds"]), int(batch["tokens"])
        except (ValueError, TypeError, KeyError):
            return number
        progress.done |= {row.row: row for row in rows}
        progress.seconds, progress.tokens = seconds, tokens
    return len(lines)
