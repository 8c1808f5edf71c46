"""Tasks of EleutherAI's lm-evaluation-harness (package lm-eval), on a model that is loaded already.

Prompts, metrics, few-shot examples and their seed are the harness's own, so that figures can be compared with
others made by it.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from neuroada_cli import files
from neuroada_cli.errors import DataError, OutputError, RecipeError, nearest
from neuroada_cli.evaluation.harness_model import counting_model, shaping_settings
from neuroada_cli.foreign_text import one_line
from neuroada_cli.methods import METHODS
from neuroada_cli.methods.facts import require_package

PACKAGE, EXTRA = "lm_eval", "harness"
WRITES = "generate_until"  # lm-eval's name of tasks in which the model writes its answer


@dataclass(frozen=True)
class Asked:
    """How the harness is to ask.

    names       tasks, groups or tags of it
    folder      of task files (YAML) of one's own, searched first
    fewshot     worked examples in front; None: each task's own number
    limit       only the first so many rows a task
    chat        put prompts through the chat template
    batch_size  rows at once
    """

    names: tuple[str, ...]
    folder: str | None = None
    fewshot: int | None = None
    limit: int | None = None
    chat: bool = False
    batch_size: int = 16


@dataclass(frozen=True)
class Score:
    """One task or group. metrics: name of a metric -> value, `acc_stderr` beside `acc`; an answer filter
    stands behind a comma where it is not "none". samples: its rows, as the harness tells them.

    cut  rows of which a prompt lost its beginning: with its answer it was longer than the max_length tokens
         that the model takes
    """

    n: int
    fewshot: int | None
    version: str
    metrics: dict[str, float]
    cut: int
    max_length: int
    samples: list[dict[str, Any]] = field(default_factory=list, repr=False)


def require() -> None:
    """Raises ResourceError, naming the extra, where the package is not installed."""
    require_package(PACKAGE, "--harness", EXTRA)


def tasks_of(asked: Asked) -> dict[str, Any]:
    """The tasks with their rows, before any model is there.

    Raises RecipeError for a name that it does not know, DataError where a task's files are broken or its rows
    cannot be had.
    """
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    try:
        manager = None if asked.folder is None else TaskManager(None, asked.folder, include_defaults=False)
        if manager is None or not set(asked.names) <= set(manager.all_tasks):
            manager = TaskManager(None, asked.folder)  # its own thousands take a while to be listed
    except Exception as error:
        raise DataError(f"is no folder of tasks ({one_line(str(error))})", asked.folder) from None
    for name in asked.names:
        if name not in manager.all_tasks:
            fix = nearest(name, manager.all_tasks, "`lm-eval ls tasks` lists them")
            raise RecipeError(f"{name[:80]} is no task of lm-eval {version(PACKAGE)}", "--harness", fix)
    try:
        loaded: dict[str, Any] = manager.load(list(asked.names))
    except Exception as error:  # its rows come by whatever a task's file says
        raise DataError(
            f"its rows cannot be had ({type(error).__name__}: {one_line(str(error))[:200]})",
            f"--harness {','.join(asked.names)}",
            "their files come from the hub; name a task of your own with --include-path",
        ) from None
    return loaded


def refuse_unwritten(tasks: Mapping[str, Any], method: str) -> None:
    """A method that edits prompts has to be told where a prompt ends. The harness scores a given answer in
    one text with its prompt and does not say it, so such a model can only be asked to write.

    Raises RecipeError.
    """
    given = sorted(name for name, task in tasks["tasks"].items() if task.OUTPUT_TYPE != WRITES)
    if METHODS[method].in_prompts and given:
        raise RecipeError(
            f"{', '.join(given)[:200]} score given answers, and {method} changes what stands in a prompt, "
            "whose end lm-eval does not say",
            "--harness",
            f"choose tasks in which the model writes its answer ({WRITES})",
        )


def left_on(model: nn.Module, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own settings of writing that shape its answers, where a task has it write."""
    writes = any(task.OUTPUT_TYPE == WRITES for task in tasks["tasks"].values())
    return shaping_settings(model) if writes else {}


def score(model: nn.Module, tokenizer: Any, tasks: Mapping[str, Any], asked: Asked) -> dict[str, Score]:
    """Task or group -> its scores. The global random states are seeded as lm-eval's own command does."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.utils import set_torch_seed

    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (asked.fewshot is not None and own != 0):  # a 0 in a task's file is meant so
            task.set_config(key="num_fewshot", value=asked.fewshot or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    random.seed(DEFAULT_RANDOM_SEED)
    set_torch_seed(DEFAULT_OTHER_SEED)
    asker = counting_model(model, tokenizer, asked.batch_size)
    found: Any = evaluate(
        lm=asker, task_dict=tasks, limit=asked.limit, apply_chat_template=asked.chat, log_samples=True
    )
    entries = {**found["results"], **found.get("groups", {})}
    rows, shots = found.get("samples", {}), found["n-shot"]
    parts = found.get("group_subtasks", {})
    return {
        name: Score(
            n=int(found["n-samples"].get(name, {}).get("effective", entry.get("sample_len", 0))),
            fewshot=shots.get(name) if isinstance(shots.get(name), int) else None,
            version=str(found["versions"].get(name, "")),
            metrics=dict(_metrics(entry)),
            cut=sum(task in _within(name, parts) for task, _ in asker.cut),
            max_length=asker.max_length,
            samples=rows.get(name, []),
        )
        for name, entry in entries.items()
    }


def _within(name: str, parts: Mapping[str, Sequence[str]]) -> set[str]:
    """A task, or all those of a group."""
    return {name}.union(*(_within(part, parts) for part in parts.get(name, ()) if part != name))


def _metrics(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in entry.items():
        name, comma, answer_filter = key.partition(",")
        if comma and isinstance(value, int | float):
            yield (name if answer_filter == "none" else key), float(value)


# ---------------------------------------------------------------------------------------------------
# The folder harness/ of an evaluation: TASK.json, and TASK.jsonl with every row


def refuse_finished(folder: Path, names: Sequence[str]) -> None:
    """Raises OutputError for a task that has been scored."""
    for name in names:
        if (folder / f"{name}.json").exists():
            raise OutputError(
                "exists", str(folder / f"{name}.json"), "add --overwrite, or choose another --out"
            )


def keep(folder: Path, scores: Mapping[str, Score], about: Mapping[str, Any]) -> None:
    """Rows first, so that scores that are there are whole. Raises ResourceError."""
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, found in scores.items():
        entry = asdict(found)
        rows = entry.pop("samples")
        if rows:
            lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]
            files.write_text(folder / f"{name}.jsonl", "".join(lines))
        files.write_json(folder / f"{name}.json", {"task": name} | entry | dict(about))
