"""Predictions of other tools, scored by a protocol's rules."""

from __future__ import annotations

from pathlib import Path

from neuroada_cli.data import gsm8k
from neuroada_cli.data.batch import Example
from neuroada_cli.data.reading import read_file
from neuroada_cli.data.task import Protocol, Row, Task
from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.evaluation.run import Prediction, score_one

FIELDS = ("instruction", "prediction", "answer")


def score_file(file: Path, task: Task, rules: Protocol) -> list[Prediction]:
    """Score rows of `instruction`, `prediction` and `answer`.

    Raises DataError for a file or a row that is not that, RecipeError for a task that is not generation.
    """
    if task.kind != "generation":
        raise RecipeError(f"{task.name} is not a generation task", "--tasks")
    if not file.is_file():
        raise DataError("no such file", str(file))
    rows, lines = read_file(file)
    if not rows:
        raise DataError("holds no rows", str(file))
    found = []
    for number, row in enumerate(rows):
        place = f"{file}:{lines[number]}" if lines else f"{file}, row {number}"
        missing = [key for key in FIELDS if key not in row]
        if missing:
            raise DataError(f"has no field {missing[0]!r}", place)
        if not isinstance(row["prediction"], str) or not isinstance(row["instruction"], str):
            raise DataError("instruction and prediction must be text", place)
        example = _example(task, row, number, rules.name)
        found.append(score_one(task.scoring[rules.name], example, row["prediction"]))
    return found


def _example(task: Task, row: Row, number: int, protocol: str) -> Example:
    """Extraction looks at prompt + completion, so the protocol's prompt is put around the instruction."""
    answer = str(row["answer"])
    if task.family == "gsm8k" and gsm8k.MARK not in answer:
        answer = f"{gsm8k.MARK} {answer}"
    try:
        return task.example(row | {"question": row["instruction"], "answer": answer}, number, protocol)
    except (KeyError, ValueError, TypeError):  # a task whose rows have other fields: its rule needs no prompt
        return Example(row["instruction"], "", answer, number)
