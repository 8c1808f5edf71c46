"""Answers by vLLM (package vllm, on a GPU) instead of the model that is loaded here.

Prompts go in as the tokens that they are here, and what comes back is cut at the same end tokens: only the
arithmetic is another.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from neuroada_cli.errors import ModelError, RecipeError
from neuroada_cli.foreign_text import one_line
from neuroada_cli.methods.facts import require_package
from neuroada_cli.tasks.task import Decoding, Task

PACKAGE, OPTION = "vllm", "--engine vllm"
AT_ONCE = 512  # rows that are asked together: the engine makes batches of its own, and what is done is kept


def check(plain: bool, alone: bool, tasks: Sequence[Task], decoding_of: Callable[[Task], Decoding]) -> None:
    """Before anything is loaded. plain: the target is no adapter; alone: one process.

    Raises ResourceError, naming the extra, where the package is not installed; RecipeError for what it
    cannot do.
    """
    require_package(PACKAGE, OPTION)
    if not plain:
        raise RecipeError("takes a plain or merged folder", OPTION, "merge it first (neuroada merge)")
    if not alone:
        raise RecipeError("shares its own work", OPTION, "leave out --processes")
    for task in tasks:
        _refuse(task, decoding_of(task))


class VllmEngine:
    """A model folder, loaded by vLLM.

    dtype  "bf16", "fp16" or "fp32"; None: as the folder says
    Raises ModelError for a model that vLLM does not load.
    """

    def __init__(
        self, folder: Path, dtype: str | None = None, seed: int = 0, trust_remote_code: bool = False
    ) -> None:
        self.name = f"vllm {importlib.metadata.version(PACKAGE)}"
        self._vllm: Any = importlib.import_module(PACKAGE)
        kind = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", None: "auto"}[dtype]
        try:
            self._model = self._vllm.LLM(
                model=str(folder), dtype=kind, seed=seed, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # of whatever it runs on
            said = f"{type(error).__name__}: {one_line(str(error))[:300]}"
            raise ModelError(
                f"vLLM does not load it ({said})",
                str(folder),
                "leave --engine out, or try a GPU that it knows",
            ) from error

    def complete(
        self,
        rows: Sequence[list[int]],
        room: int,
        ends: Collection[int],
        decoding: Decoding,
        seed: int,
    ) -> list[list[int]]:
        """What each row of tokens goes on with, at most `room` of them, without its end token."""
        sampled = decoding.temperature is not None
        asked = self._vllm.SamplingParams(
            temperature=decoding.temperature if sampled else 0.0,
            top_p=decoding.top_p if sampled else 1.0,
            top_k=decoding.top_k if sampled else 0,
            seed=seed if sampled else None,
            max_tokens=room,
            stop_token_ids=sorted(ends),
            detokenize=False,
        )
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        answers = self._model.generate(prompts, asked, use_tqdm=False)
        return [_until_end(list(answer.outputs[0].token_ids), ends) for answer in answers]


def _refuse(task: Task, decoding: Decoding) -> None:
    """What is not text that follows a prompt token by token."""
    if task.kind != "generation" or task.by_loss or task.work.pictures:
        raise RecipeError(f"only writes texts, and {task.name} asks for more", OPTION, "leave it out")
    if decoding.beams > 1:
        raise RecipeError(
            f"has no search over beams, and this protocol asks for {decoding.beams}",
            OPTION,
            "leave it out, or choose another --protocol",
        )


def _until_end(row: list[int], ends: Collection[int]) -> list[int]:
    return row[: next((at for at, token in enumerate(row) if token in ends), len(row))]
