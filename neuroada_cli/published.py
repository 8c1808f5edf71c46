"""The paper's tables (published.json: facts of arXiv:2510.18940) and our scores under the same recipes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroada_cli import files
from neuroada_cli.errors import DataError

FILE = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Row:
    """One recipe of the paper. Scores are in %, task -> score.

    average  as the paper prints it
    ours     None where there is no result of ours
    notes    why ours cannot be compared: other rows, another protocol
    """

    recipe: str
    published: dict[str, float]
    average: float
    ours: dict[str, float] | None
    notes: tuple[str, ...]

    @property
    def our_average(self) -> float | None:
        """Over all tasks of the row; None while one is missing."""
        if self.ours is None or self.ours.keys() != self.published.keys():
            return None
        return statistics.fmean(self.ours.values())


def tables(runs: Path) -> dict[str, list[Row]]:
    """ "commonsense" and "math" -> the paper's rows, each with what `eval` left in runs/RECIPE/eval.

    Raises DataError for a result file that `eval` did not write.
    """
    facts = files.read_json(FILE, DataError)
    return {
        name: [_row(row, runs / row["recipe"] / "eval" / "results.json", facts["protocol"]) for row in rows]
        for name, rows in facts["tables"].items()
    }


def _row(row: dict[str, Any], file: Path, protocol: str) -> Row:
    published = row["scores"]
    if not file.is_file():
        return Row(row["recipe"], published, row["average"], None, ())
    found = files.read_json(file, DataError)
    ours, notes = {}, dict[str, None]()
    try:
        for task in published:
            if task in found:
                entry = found[task]
                ours[task] = 100 * float(entry["score"])
                if entry["protocol"] != protocol:
                    notes[f"protocol {entry['protocol']}"] = None
                if entry["data"]["rows"] != "all rows":
                    notes[f"{task}: {entry['n']} rows ({entry['data']['rows']})"] = None
    except (KeyError, TypeError, ValueError):
        raise DataError("is not what eval wrote", str(file), "evaluate it again") from None
    return Row(row["recipe"], published, row["average"], ours or None, tuple(notes))
