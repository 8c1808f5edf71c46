"""The paper's tables (published.json: facts of arXiv:2510.18940) and our scores under the same recipes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroada_cli import files
from neuroada_cli.errors import DataError, RecipeError
from neuroada_cli.recipe.load import load_recipe
from neuroada_cli.recipe.schema import Recipe

FILE = Path(__file__).with_name("published.json")
# what a run must share with a bundled recipe to be that row of the paper's tables
SHARED = (
    "model.path", "select.k", "select.criterion", "data.train", "data.limit", "data.drop_leaked",
    "train.method", "train.epochs", "train.max_steps",
)  # fmt: skip
# a mean of scores that are rounded to 0.1, itself rounded, is not further off than this
ROUNDING = 0.1


@dataclass(frozen=True)
class PaperRow:
    """One recipe of the paper. Scores are in %, task -> score.

    average  as the paper prints it
    leaked   tasks most of whose test questions the training set asks
    ours     None where there is no result of ours
    notes    why ours cannot be compared: other rows, another protocol, model or recipe
    """

    recipe: str
    published: dict[str, float]
    average: float
    leaked: tuple[str, ...]
    ours: dict[str, float] | None
    notes: tuple[str, ...]

    @property
    def own_average(self) -> float | None:
        """The mean of the published scores where the paper prints another one; None where it is that mean."""
        mean = statistics.fmean(self.published.values())
        return mean if abs(mean - self.average) > ROUNDING else None

    @property
    def our_average(self) -> float | None:
        """Over all tasks of the row; None while one is missing."""
        return self._mean(self.ours, set(self.published))

    @property
    def clean(self) -> float:
        """The mean of the published scores that measure more than memory."""
        mean = self._mean(self.published, self._clean_tasks)
        assert mean is not None, "a row has scores for its tasks"
        return mean

    @property
    def our_clean(self) -> float | None:
        """The same of ours; None while one of these tasks is missing."""
        return self._mean(self.ours, self._clean_tasks)

    @property
    def _clean_tasks(self) -> set[str]:
        return set(self.published) - set(self.leaked)

    @staticmethod
    def _mean(scores: Mapping[str, float] | None, tasks: set[str]) -> float | None:
        if scores is None or not tasks <= scores.keys():
            return None
        return statistics.fmean(scores[task] for task in tasks)


def tables(runs: Path) -> dict[str, list[PaperRow]]:
    """ "commonsense" and "math" -> the paper's rows, each with what `eval` left in runs/RECIPE/eval.

    Raises DataError for a result file that `eval` did not write.
    """
    facts = files.read_json(FILE, DataError)
    return {
        name: [_row(row, tuple(facts["leaked"][name]), runs / row["recipe"], facts) for row in rows]
        for name, rows in facts["tables"].items()
    }


def _row(row: dict[str, Any], leaked: tuple[str, ...], run: Path, facts: dict[str, Any]) -> PaperRow:
    published, file = row["scores"], run / "eval" / "results.json"
    if not file.is_file():
        return PaperRow(row["recipe"], published, row["average"], leaked, None, ())
    found = files.read_json(file, DataError)
    recipe = load_recipe(row["recipe"])
    ours, notes = {}, dict[str, None]()
    try:
        for task in published:
            if task in found:
                ours[task] = 100 * float(found[task]["score"])
                notes |= dict.fromkeys(_differences(task, found[task], recipe, facts))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError("is not what eval wrote", str(file), "evaluate it again") from None
    notes |= dict.fromkeys(_changes(run / "recipe.yaml", recipe))
    return PaperRow(row["recipe"], published, row["average"], leaked, ours or None, tuple(notes))


def _differences(task: str, entry: dict[str, Any], recipe: Recipe, facts: dict[str, Any]) -> Iterator[str]:
    """What a result says about itself that is not as in the paper."""
    if entry["protocol"] != facts["protocol"]:
        yield f"protocol {entry['protocol']}"
    if entry["loss_mask"] != facts["loss_mask"]:
        yield f"loss on {entry['loss_mask'] or 'unknown tokens'}, the paper's is on {facts['loss_mask']}"
    if entry["decoding"] != facts["decoding"]:
        yield f"decoding {entry['decoding'] or 'unknown'}, the paper's is {facts['decoding']}"
    model, sizes = entry["model"], facts["sizes"][recipe.model.path]
    if model is None:
        yield "the model is not known"
    elif wrong := [key for key in sizes if model["config"].get(key) != sizes[key]]:
        key = wrong[0]
        yield f"another model than {recipe.model.path}: {key} {model['config'].get(key)}, not {sizes[key]}"
    rows, n, count = entry["data"]["rows"], int(entry["n"]), facts["test_rows"][task]
    if n != count or rows != "all rows":
        yield f"{task}: {n:,} of {count:,} test rows ({rows})"


def _changes(file: Path, bundled: Recipe) -> Iterator[str]:
    """Where a run's own recipe leaves the bundled one."""
    if not file.is_file():
        return
    try:
        recipe = load_recipe(file)
    except RecipeError as error:
        yield f"what was trained is not known: {error}"
        return
    for key in SHARED:
        section, name = key.split(".")
        ours, theirs = (getattr(getattr(each, section), name) for each in (recipe, bundled))
        if key == "model.path":  # a copy in a folder of the same name is the same model
            ours, theirs = Path(ours).name, Path(theirs).name
        if ours != theirs:
            yield f"trained with {key}={_said(ours)}, the recipe has {_said(theirs)}"


def _said(value: object) -> str:
    return "none" if value is None else str(value)
