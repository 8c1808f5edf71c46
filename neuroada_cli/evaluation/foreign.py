"""Predictions of other tools, scored by a protocol's rules.

A row holds `instruction`, `prediction` and `answer`. Tools differ in whether a prediction repeats its prompt:
one leading copy (the protocol's prompt around the instruction, Alpaca's, or the instruction alone) is taken
off with the special tokens around it, so that no answer is found in the question (`repeated`).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroada_cli import __version__, files
from neuroada_cli.data.batch import Example
from neuroada_cli.data.reading import Row, read_file
from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.evaluation.records import Records
from neuroada_cli.evaluation.repeated import without_prompt
from neuroada_cli.evaluation.results import Prediction, TaskResult
from neuroada_cli.evaluation.run import score_one
from neuroada_cli.tasks import commonsense, gsm8k
from neuroada_cli.tasks.answers import is_number
from neuroada_cli.tasks.registry import get_task
from neuroada_cli.tasks.task import Protocol, Task, under
from neuroada_cli.tasks.templates import alpaca

FIELDS = ("instruction", "prediction", "answer")
AS_ASKED = ("instruct", "image-text")  # families whose prompts are those of the rows, not the protocol's


@dataclass(frozen=True)
class AnswerKind:
    """Answers of one form. task: the rule that scores them where no task is named."""

    task: str
    fits: Callable[[str], bool]


def matching(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda answer: compiled.fullmatch(answer) is not None


KINDS = {
    "numbers": AnswerKind("math", is_number),
    "letters A to E": AnswerKind("AQuA", matching("[A-E]")),
    "options like answer1 or true": AnswerKind("commonsense", matching(commonsense.ANY_OPTION)),
}


@dataclass(frozen=True)
class ForeignRows:
    """The rows of a file, checked. places: file:line of each; answers: of each, as text.

    sha256  of the file; label names it to readers elsewhere
    """

    rows: list[Row]
    places: list[str]
    answers: list[str]
    sha256: str
    label: str


def read(file: Path) -> ForeignRows:
    """Raises DataError, with place and count, for a file or a row that is not of the three fields."""
    if not file.is_file():
        raise DataError("no such file", str(file))
    found = read_file(file)
    rows, lines = list(found.rows), found.lines
    if not rows:
        raise DataError("holds no rows", str(file))
    places = [f"{file}:{lines[at]}" if lines else f"{file}, row {at}" for at in range(len(rows))]
    _refuse_bad(places, [_problem(row) for row in rows])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    answers = [str(row["answer"]).strip() for row in rows]
    return ForeignRows(rows, places, answers, digest, "/".join(file.parts[-2:]))


def recognise(found: ForeignRows) -> tuple[Task, str]:
    """The task by whose rule answers like these are scored, and what they are in words.

    Raises DataError when they are not all of one kind, naming the first that differs.
    """
    kinds = [next((name for name, kind in KINDS.items() if kind.fits(a)), "others") for a in found.answers]
    counts = Counter(kinds)
    if len(counts) == 1 and kinds[0] in KINDS:
        return get_task(KINDS[kinds[0]].task), kinds[0]
    odd = next((at for at, kind in enumerate(kinds) if kind != kinds[0]), 0)
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    raise DataError(
        f"which rule scores it cannot be told by the answers ({said}; here {found.answers[odd][:40]!r})",
        found.places[odd],
        "name one with --tasks",
    )


def score(found: ForeignRows, task: Task, rules: Protocol) -> list[Prediction]:
    """Raises RecipeError for a task that writes no text, DataError for an answer that cannot be its."""
    if task.kind != "generation":
        raise RecipeError(f"{task.name} is not a generation task", "--tasks")
    task = under(task, rules)
    wanted, fits = _wanted(task)
    problems = [
        None if fits(answer) else f"answer {answer[:40]!r} is none of the {wanted} of task {task.name}"
        for answer in found.answers
    ]
    _refuse_bad(found.places, problems)
    scored = []
    for number, (row, answer) in enumerate(zip(found.rows, found.answers, strict=True)):
        example = _example(task, row, answer, number, rules.name)
        asked = (example.prompt, alpaca(row["instruction"]), row["instruction"])
        text = without_prompt(row["prediction"], asked)
        scored.append(score_one(task.scoring[rules.name], example, text))
    return scored


def keep(
    records: Records,
    rows: ForeignRows,
    found: Sequence[Prediction],
    scores: TaskResult,
    rules: Protocol,
    overwrite: bool,
) -> None:
    """Write scores and rows. What made the predictions is not known, and that is what the file says.

    Raises OutputError for a folder that holds a result of the task, unless it may be overwritten.
    """
    unknown = dict.fromkeys(("model", "loss_mask", "decoding", "max_new_tokens"))
    about = {
        "protocol": rules.name,
        **unknown,
        "data": {"source": rows.label, "rows": "all rows", "sha256": rows.sha256},
        "versions": {"neuroada": __version__},
    }
    if not overwrite:
        records.refuse_finished([scores.task])
    with files.Lock(records.folder):
        records.finish(scores.task, found, scores, about)


def _problem(row: Row) -> str | None:
    missing = [key for key in FIELDS if key not in row]
    if missing:
        return f"has no field {missing[0]!r}"
    if not isinstance(row["prediction"], str) or not isinstance(row["instruction"], str):
        return "instruction and prediction must be text"
    answer: Any = row["answer"]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return f"answer is {'null' if answer is None else type(answer).__name__}, not text or a number"
    return None


def _refuse_bad(places: Sequence[str], problems: Sequence[str | None]) -> None:
    bad = [(place, problem) for place, problem in zip(places, problems, strict=True) if problem]
    if bad:
        more = f" ({len(bad)} of {len(places)} rows are bad)" if len(bad) > 1 else ""
        raise DataError(f"{bad[0][1]}{more}", bad[0][0], "mend or remove it")


def _wanted(task: Task) -> tuple[str, Callable[[str], bool]]:
    """What the answers of a task are, in words, and whether one is: else it would only be scored as wrong."""
    if task.family == "commonsense":
        pattern = commonsense.OPTIONS.get(task.name, commonsense.ANY_OPTION)
        return f"options ({pattern})", matching(pattern)
    if task.name == "AQuA":
        return "letters A to E", KINDS["letters A to E"].fits
    if task.family == "arithmetic":
        return "numbers", is_number
    if task.family == "gsm8k":
        return "numbers", lambda answer: is_number(answer.rpartition(gsm8k.MARK)[2])
    return "answers", lambda answer: True


def _example(task: Task, row: Row, answer: str, number: int, protocol: str) -> Example:
    """Extraction looks at prompt + completion, so the protocol's prompt is put around the instruction."""
    asked = row["instruction"]
    if task.family in AS_ASKED:
        return Example(asked, "", answer, number)
    if task.family in ("gsm8k", "metamath") and gsm8k.MARK not in answer:
        answer = f"{gsm8k.MARK} {answer}"
    names = dict.fromkeys(("question", "message"), asked) | dict.fromkeys(("answer", "date"), answer)
    try:
        return task.example(row | names, number, protocol)
    except (KeyError, ValueError, TypeError):  # a task whose rows have other fields: its rule needs no prompt
        return Example(asked, "", answer, number)
