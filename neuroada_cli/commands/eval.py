"""`neuroada eval`: generate or classify, score by a protocol's rules, keep every prediction."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from neuroada_cli import adapted, files
from neuroada_cli.adapter import find_adapter
from neuroada_cli.data import sources
from neuroada_cli.data.batch import Example
from neuroada_cli.data.glue import half_of_validation
from neuroada_cli.data.sources import Rows
from neuroada_cli.data.task import Protocol, Task, examples_of
from neuroada_cli.data.tasks import expand, get_protocol, get_task
from neuroada_cli.errors import DataError, OutputError, RecipeError
from neuroada_cli.evaluation import metrics
from neuroada_cli.evaluation.run import Prediction, TaskResult, predict, score_one, summarise
from neuroada_cli.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class EvalResult:
    """Scores and predictions by task, and the folder they were written to (None for foreign predictions)."""

    results: dict[str, TaskResult]
    predictions: dict[str, list[Prediction]]
    folder: Path | None


@dataclass(frozen=True)
class _Job:
    """One task with its rows, ready to run. part says which rows of the source were taken."""

    task: Task
    rows: Rows
    examples: list[Example]
    part: str


def run(
    target: str,
    recipe: Recipe | None = None,
    tasks: Sequence[str] = (),
    protocol: str | None = None,
    out: str | Path | None = None,
    data_dir: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> EvalResult:
    """Score `target` (base, adapter, run or merged folder, hub id, or a recipe: its base) on tasks.

    Settings that are None come from the recipe (for an adapter: the one it was trained with), else from the
    protocol. An interrupted evaluation goes on where it stopped when it is started again.
    Raises UserErrors before the model loads wherever that is possible.
    """
    console = Console(quiet=quiet)
    if target.endswith((".yaml", ".yml")):
        recipe = recipe or load_recipe(target)
        target = recipe.model.path
    recipe = recipe or _own_recipe(target)
    rules = get_protocol(protocol or (recipe.data.protocol if recipe else "reft"))
    chosen = _chosen_tasks(tasks, recipe)
    folder = Path(out) if out is not None else _default_folder(target)
    _refuse_taken(folder, chosen, overwrite)
    limit = limit or (recipe.eval.limit if recipe else None)
    data_dir = data_dir or (recipe.data.data_dir if recipe else None)
    jobs = [_job(task, recipe, rules, data_dir, limit) for task in chosen]
    size = batch_size or (recipe.eval.batch_size if recipe else 16)
    new = max_new_tokens or (recipe.eval.max_new_tokens if recipe else None)
    length = recipe.data.max_length if recipe else rules.max_length

    with console.status("loading the model"):
        subject = adapted.load(
            target,
            chosen[0].model_task,
            dtype or (recipe.model.dtype if recipe and not adapted.is_adapter(target) else None),
            device or (recipe.device if recipe else None) or _default_device(),
            chosen[0].num_labels,
            attention=recipe.model.attention if recipe else None,
            revision=recipe.model.revision if recipe else None,
            trust_remote_code=recipe.model.trust_remote_code if recipe else False,
        )
    results: dict[str, TaskResult] = {}
    predictions: dict[str, list[Prediction]] = {}
    with files.Lock(folder):
        for job in jobs:
            about = _about(job, rules, subject, size, new, length)
            found, seconds, tokens = _predict(job, rules, subject, about, folder, size, new, length, console)
            results[job.task.name] = summarise(job.task, found, seconds, tokens)
            predictions[job.task.name] = found
            _write(folder, job, found, results[job.task.name], about)
    if not quiet:
        console.print(_table(results, target, rules))
        console.print(f"predictions and results: {folder}", soft_wrap=True)
    return EvalResult(results, predictions, folder)


def run_predictions(file: str | Path, task_name: str, protocol: str, quiet: bool = False) -> EvalResult:
    """Score foreign predictions: JSON lines with `instruction`, `prediction` and `answer`.

    Raises DataError for a file or a row that is not that.
    """
    task, rules = get_task(task_name), get_protocol(protocol)
    if task.kind != "generation":
        raise RecipeError(f"{task.name} is not a generation task", "--tasks")
    if not Path(file).is_file():
        raise DataError("no such file", str(file))
    rows, lines = sources.read_file(Path(file))
    if not rows:
        raise DataError("holds no rows", str(file))
    found = []
    for number, row in enumerate(rows):
        place = f"{file}:{lines[number]}" if lines else f"{file}, row {number}"
        try:
            example = Example(str(row["instruction"]), "", str(row["answer"]), number)
            completion = row["prediction"]
        except KeyError as error:
            raise DataError(f"has no field {error.args[0]!r}", place) from None
        if not isinstance(completion, str):
            raise DataError("prediction is not text", place)
        found.append(
            score_one(task.scoring[protocol], _with_prompt(task, example, row, protocol), completion)
        )
    result = {task.name: summarise(task, found, 0.0, 0)}
    if not quiet:
        Console().print(_table(result, str(file), rules))
    return EvalResult(result, {task.name: found}, None)


def _with_prompt(task: Task, example: Example, row: dict[str, Any], protocol: str) -> Example:
    """Extraction looks at prompt + completion, so the protocol's prompt is put around the instruction."""
    try:
        return task.example({**row, "question": example.prompt}, example.row, protocol)
    except (KeyError, ValueError, TypeError):
        return example


# ---------------------------------------------------------------------------------------------------
# Before the model loads


def _own_recipe(target: str) -> Recipe | None:
    """The recipe that an adapter was trained with."""
    if not adapted.is_adapter(target):
        return None
    file = find_adapter(target) / "recipe.yaml"
    return load_recipe(file) if file.is_file() else None


def _chosen_tasks(names: Sequence[str], recipe: Recipe | None) -> list[Task]:
    wanted = list(names) or (recipe.eval.tasks or [recipe.data.task] if recipe else [])
    if not wanted:
        raise RecipeError("no task to score", fix="add --tasks boolq,piqa (or a recipe)")
    chosen = expand(wanted)
    if len({task.model_task for task in chosen}) > 1 or len({task.num_labels for task in chosen}) > 1:
        raise RecipeError("these tasks need different heads", "--tasks", "evaluate them one by one")
    return chosen


def _job(task: Task, recipe: Recipe | None, rules: Protocol, data_dir: str | None, limit: int | None) -> _Job:
    source = task.sets.get("test")
    if source is None:
        source = recipe.data.validation if recipe else None
        sources.require_source(source, "data.validation")
    metrics.require(task.metrics if task.kind != "generation" else ())
    rows = sources.load_rows(str(source), "test", data_dir)
    part = "all rows"
    if task.family == "glue":
        kept = half_of_validation(rows.rows, "report")
        rows = dataclasses.replace(rows, rows=[rows.rows[i] for i in kept], lines=None)
        part = "the half of the validation rows that chose no checkpoint"
    if limit is not None and limit < len(rows):
        rows = dataclasses.replace(rows, rows=rows.rows[:limit])
        part = f"the first {limit} of {part}"
    examples = examples_of(task, rows.rows, rules.name, rows.source, rows.lines)
    return _Job(task, rows, examples, part)


def _default_folder(target: str) -> Path:
    """Beside what we wrote ourselves; nothing is ever put into a foreign model folder."""
    if adapted.is_adapter(target):
        place = Path(target)
        return (place if not (place / "adapter_config.json").is_file() else place.resolve()) / "eval"
    if (Path(target) / files.MANIFEST).is_file():
        return Path(target) / "eval"
    return Path("eval") / Path(target).name


def _refuse_taken(folder: Path, tasks: Sequence[Task], overwrite: bool) -> None:
    for task in tasks:
        if not overwrite and (file := _predictions_file(folder, task)).exists():
            raise OutputError("exists", str(file), "add --overwrite, or choose another --out")


def _predictions_file(folder: Path, task: Task) -> Path:
    return folder / "predictions" / f"{task.name}.jsonl"


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# ---------------------------------------------------------------------------------------------------
# Running


def _about(
    job: _Job, rules: Protocol, subject: adapted.Adapted, batch_size: int, new: int | None, length: int
) -> dict[str, Any]:
    """Everything a reader needs to know what a score means, and whether two of them may be compared."""
    scoring = job.task.scoring.get(rules.name)
    return {
        "protocol": rules.name,
        "loss_mask": rules.loss_mask,
        "decoding": "greedy" if scoring else "classification",
        "max_new_tokens": new or scoring.max_new_tokens if scoring else None,
        "max_length": length if scoring is None else None,
        "batch_size": batch_size,
        "data": {"source": Path(job.rows.source).name, "rows": job.part, "sha256": job.rows.sha256},
        "model": subject.identity,
        "dtype": str(next(subject.model.parameters()).dtype).removeprefix("torch."),
        "device": str(next(subject.model.parameters()).device),
    }


def _predict(
    job: _Job,
    rules: Protocol,
    subject: adapted.Adapted,
    about: dict[str, Any],
    folder: Path,
    batch_size: int,
    new: int | None,
    length: int,
    console: Console,
) -> tuple[list[Prediction], float, int]:
    """(predictions of all rows, seconds, tokens), going on with what an earlier run under `about` left."""
    partial = _predictions_file(folder, job.task).with_suffix(".partial.jsonl")
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    done, spent, tokens = _resume(partial, key)
    todo = [example for example in job.examples if example.row not in done]
    if done and todo:
        console.print(f"{job.task.name}: going on after {len(done)} rows")
    started = time.perf_counter()
    with _progress(console, job.task.name, len(job.examples), len(done)) as advance:

        def keep(batch: list[Prediction]) -> None:
            seconds = spent + time.perf_counter() - started
            for prediction in batch:
                files.append_jsonl(partial, dataclasses.asdict(prediction) | {"seconds": seconds})
            advance(len(batch), sum(p.correct for p in batch))

        if todo:
            fresh, count = predict(
                subject.model, subject.tokenizer, job.task, todo, rules.name, batch_size, new, length, keep
            )
            done |= {prediction.row: prediction for prediction in fresh}
            tokens += count
    seconds = spent + time.perf_counter() - started
    return [done[example.row] for example in job.examples], seconds, tokens


def _resume(partial: Path, key: str) -> tuple[dict[int, Prediction], float, int]:
    """Rows that an interrupted run with the same settings has done; otherwise a fresh work file."""
    done: dict[int, Prediction] = {}
    seconds = 0.0
    if partial.is_file():
        lines = partial.read_text(encoding="utf-8", errors="replace").split("\n")
        if lines[0] == json.dumps({"settings": key}):
            for line in lines[1:-1]:  # what follows the last line break was cut off by a kill
                try:
                    values = json.loads(line)
                    seconds = float(values.pop("seconds"))
                    prediction = Prediction(**values)
                except (ValueError, TypeError, KeyError):
                    continue  # a torn line: its row is simply done again
                done[prediction.row] = prediction
            if done:
                return done, seconds, 0
    with files.explained(partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(partial, json.dumps({"settings": key}) + "\n")
    return {}, 0.0, 0


class _progress:  # noqa: N801  (used like a function)
    """A bar with the accuracy so far; calling it advances it."""

    def __init__(self, console: Console, name: str, total: int, done: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[accuracy]}"), console=console, transient=True)
        self._task = self._bar.add_task(name, total=total, completed=done, accuracy="")
        self._rows = self._correct = 0

    def __enter__(self) -> _progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, rows: int, correct: int) -> None:
        self._rows += rows
        self._correct += correct
        share = f"{self._correct / self._rows:.1%} correct"
        self._bar.update(self._task, advance=rows, accuracy=share)


def _write(
    folder: Path, job: _Job, predictions: list[Prediction], result: TaskResult, about: dict[str, Any]
) -> None:
    file = _predictions_file(folder, job.task)
    lines = [json.dumps(dataclasses.asdict(p), ensure_ascii=False) for p in predictions]
    files.write_text(file, "\n".join(lines) + "\n")
    summary = folder / "results.json"
    before = files.read_json(summary, DataError) if summary.is_file() else {}
    entry = dataclasses.asdict(result) | about | {"torch": torch.__version__, "machine": platform.machine()}
    files.write_json(summary, before | {job.task.name: entry})
    file.with_suffix(".partial.jsonl").unlink(missing_ok=True)


def _table(results: dict[str, TaskResult], target: str, rules: Protocol) -> Table:
    table = Table(title=f"{target}   protocol {rules.name}, loss on {rules.loss_mask}", title_justify="left")
    table.add_column("task")
    for heading in ("rows", "score", "metric", "strict", "majority", "no answer", "rows/s"):
        table.add_column(heading, justify="right" if heading != "metric" else "left")
    for name, result in results.items():
        table.add_row(
            name,
            f"{result.n:,}",
            f"{100 * result.score:.1f}",
            result.metric,
            "" if result.strict is None else f"{100 * result.strict:.1f}",
            "" if result.majority is None else f"{100 * result.majority:.1f}",
            str(result.unparsed) if result.unparsed else "0",
            f"{result.n / result.seconds:.1f}" if result.seconds else "",
        )
    if len(results) > 1:
        mean = sum(r.score for r in results.values()) / len(results)
        table.add_section()
        table.add_row("mean", "", f"{100 * mean:.1f}", style="bold")
    return table
