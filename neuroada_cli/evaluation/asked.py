"""Hashes of what a model is asked: answers to other prompts never stand under one score."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from neuroada_cli.data.batch import Example
from neuroada_cli.hub.tokenizer_class import without_calls
from neuroada_cli.tasks import answers, metrics
from neuroada_cli.tasks.task import Task


def prompts_sha256(examples: Iterable[Example], labels: Sequence[str] = ()) -> str:
    """Of every prompt and reference as the model and the scorer get them, with the names of classes in their
    order. The same rows under another template, format or choice of columns give another one.

    A picture counts by its content; where it cannot be had, which is told elsewhere, by its name.
    """
    digest = hashlib.sha256()
    for part in (list(labels), *map(_told, examples)):
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()


def _told(example: Example) -> list[object]:
    pictures = [_content(picture) for picture in example.pictures]
    texts = [example.prompt, example.pair, example.lead, example.end]
    return [example.row, *texts, example.answer, example.rendered, pictures]


def _content(picture: Any) -> str:
    try:
        return hashlib.sha256(picture.data()).hexdigest()
    except (AttributeError, ValueError):
        return repr(getattr(picture, "value", picture))


def tokenizer_sha256(tokenizer: Any) -> str | None:
    """Of what makes tokens of a prompt; None for no tokenizer, or one that does not say it."""
    backend = None if tokenizer is None else getattr(without_calls(tokenizer), "backend_tokenizer", None)
    if backend is None:
        return None
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    return hashlib.sha256(json.dumps([backend.to_str(), special]).encode()).hexdigest()


def scorers(task: Task, protocol: str) -> dict[str, str | None]:
    """Package -> version of those that score it in columns of their own; None for one that is not there."""
    return dict(_scorers(task, protocol))


def _scorers(task: Task, protocol: str) -> Iterator[tuple[str, str | None]]:
    scoring = task.scoring.get(protocol)
    if scoring is not None and scoring.strict is answers.strict_number:
        yield "math-verify", importlib.metadata.version("math-verify") if answers.can_verify() else None
    if "rouge_l" in task.metrics:
        yield "rouge-score", importlib.metadata.version("rouge-score") if metrics.can_rouge() else None
