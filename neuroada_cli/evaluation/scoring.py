"""One task on one model, from what is done already to its files; and what its scores depend on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import transformers
from rich.console import Console
from torch import nn

from neuroada_cli import __version__
from neuroada_cli.evaluation import asked, display
from neuroada_cli.evaluation.records import About, Progress, Records
from neuroada_cli.evaluation.results import Prediction, TaskResult
from neuroada_cli.evaluation.rows import TaskRows
from neuroada_cli.evaluation.run import length_for, predict, summarise
from neuroada_cli.evaluation.vllm_engine import VllmEngine
from neuroada_cli.hub import Reader
from neuroada_cli.ranks.group import Ranks
from neuroada_cli.show.notes import say
from neuroada_cli.show.numbers import counted
from neuroada_cli.tasks.task import Decoding, Protocol, Task, decoding_of


@dataclass(frozen=True)
class Settings:
    """rules score; loss_mask is what the model was trained under (a base: what the protocol would have).

    decoding, seed  as the recipe has them
    engine          writes in place of the model; None: the model itself
    """

    rules: Protocol
    loss_mask: str
    batch_size: int
    new_tokens: int | None
    max_length: int
    decoding: Literal["greedy", "sampling"] | None
    seed: int
    engine: VllmEngine | None = None

    def decoding_of(self, task: Task) -> Decoding:
        return decoding_of(task, self.rules, self.decoding)


def about(
    job: TaskRows, settings: Settings, model: nn.Module, reader: Reader, identity: dict[str, Any]
) -> About:
    """Everything a reader needs to know what a score means, and whether two of them may be compared.

    Rows that differ in any of it are never put under one score.
    """
    scoring = None if job.task.by_loss else job.task.scoring.get(settings.rules.name)
    decoding = settings.decoding_of(job.task)
    seed = f", seed {settings.seed}" if decoding.temperature is not None else ""
    some = next(model.parameters())
    by: dict[str, Any] = {}
    if settings.engine is not None:
        by = {"engine": settings.engine.name, "device": settings.engine.name, "attention": None}
    return (
        identity
        | {
            "protocol": settings.rules.name,
            "loss_mask": settings.loss_mask if scoring else None,
            "decoding": f"{decoding}{seed}" if scoring else None,
            "max_new_tokens": settings.new_tokens or scoring.max_new_tokens if scoring else None,
            "max_length": None if scoring else length_for(model, settings.max_length),
            "batch_size": settings.batch_size,
            "data": {
                "source": job.rows.label,
                "rows": job.part,
                "sha256": job.rows.sha256,
                "prompts_sha256": job.prompts_sha256,
                "tokenizer_sha256": asked.tokenizer_sha256(reader.tokenizer),
            },
            "dtype": str(some.dtype).removeprefix("torch."),
            "attention": getattr(model.config, "_attn_implementation", None),
            "device": torch.cuda.get_device_name(some.device) if some.is_cuda else some.device.type,
            "versions": {
                "neuroada": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                **asked.scorers(job.task, settings.rules.name),
            },
        }
        | by
    )


def _resumed(records: Records, name: str, about: About, ranks: Ranks) -> Progress:
    """What is done already, on every rank."""
    found = ranks.first_does(lambda: records.resume(name, about))
    told = ranks.shared(found.as_json() if found is not None and not ranks.alone else None)
    return found if found is not None else Progress.of(told)


def score(
    job: TaskRows,
    settings: Settings,
    model: nn.Module,
    reader: Reader,
    about: About,
    records: Records,
    console: Console,
    ranks: Ranks,
    untouched: Callable[[], None],
) -> tuple[list[Prediction], TaskResult]:
    """Predict what an earlier run under `about` has not done, and write the task's files.

    untouched  raises ModelError where the model is no longer what `about` says; nothing is kept of it then
    """
    name = job.task.name
    progress = _resumed(records, name, about, ranks)
    todo = [example for example in job.examples if example.row not in progress.done]
    if progress.done and todo:
        console.print(f"{name}: going on after {counted(len(progress.done), 'row')}")
    if progress.left:
        other = f" ({progress.other})" if progress.other else ""
        count = counted(progress.left, "row")
        say(console, f"{name}: starting anew, since {count} done before had other settings{other}")
    started = time.perf_counter() - progress.seconds
    with display.bar(console, name, len(job.examples)) as bar:
        bar.advance(list(progress.done.values()))

        def keep(batch: list[Prediction], tokens: int) -> None:
            progress.tokens += tokens
            progress.done |= {prediction.row: prediction for prediction in batch}
            if ranks.first:
                untouched()
                records.add(name, batch, time.perf_counter() - started, progress.tokens)
            bar.advance(batch)

        if todo:
            predict(
                model,
                reader,
                job.task,
                todo,
                settings.rules.name,
                settings.batch_size,
                settings.new_tokens,
                settings.max_length,
                keep,
                settings.decoding_of(job.task),
                settings.seed,
                ranks,
                settings.engine,
            )
            progress.seconds = time.perf_counter() - started
    found = [progress.done[example.row] for example in job.examples]
    if job.leaked is not None:
        found = [replace(prediction, leaked=prediction.row in job.leaked) for prediction in found]
    scores = summarise(job.task, found, progress.seconds, progress.tokens)
    leaked = len(job.leaked) if job.leaked is not None else None
    scores = replace(scores, leaked=leaked, training_set=job.training_set)
    ranks.first_does(lambda: records.finish(name, found, scores, about))
    return found, scores
