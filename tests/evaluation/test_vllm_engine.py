"""`eval --engine vllm` beside a stand-in for the package, which runs on GPUs only: it takes what vLLM 0.33
takes (by keyword, and nothing else), and answers by the model that lies in the folder.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import pico_llama
from tiny_run import one_thread, tiny_recipe  # noqa: F401
from tiny_tokenizer import SIZE, byte_tokenizer

from neuroada_cli.commands import eval as evaluate
from neuroada_cli.commands import train
from neuroada_cli.errors import ModelError, RecipeError, ResourceError


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    detokenize: bool = True


class LLM:
    def __init__(self, model: str, *, dtype: str, seed: int, trust_remote_code: bool) -> None:
        from transformers import AutoModelForCausalLM

        if dtype == "float16":
            raise RuntimeError("no such kernel")
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    def generate(self, prompts: list[Any], sampling_params: SamplingParams, *, use_tqdm: bool) -> list[Any]:
        assert sampling_params.temperature == 0.0
        return [self.answer(prompt["prompt_token_ids"], sampling_params) for prompt in prompts]

    def answer(self, tokens: list[int], asked: SamplingParams) -> Any:
        """With its end token, as vLLM has it."""
        written = list(tokens)
        for _ in range(asked.max_tokens or 0):
            with torch.no_grad():
                logits_SV = self.model(torch.tensor([written])).logits[0]
            written.append(int(logits_SV[-1].argmax()))
            if written[-1] in (asked.stop_token_ids or ()):
                break
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(written[len(tokens) :]))])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "0.33.0" if n == "vllm" else known(n))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    pico_llama(vocabulary=SIZE, max_position_embeddings=512).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


QUICK: dict[str, Any] = {"tasks": ["due_dates"], "limit": 4, "max_new_tokens": 6, "quiet": True}


def test_its_scores_are_the_models_own(base: Path, stand_in: None, tmp_path: Path) -> None:
    own = evaluate.run(base, out=tmp_path / "own", dtype="fp32", **QUICK)
    other = evaluate.run(base, out=tmp_path / "other", dtype="fp32", engine="vllm", **QUICK)
    assert [row.prediction for row in other.predictions["due_dates"]] == [
        row.prediction for row in own.predictions["due_dates"]
    ]
    told = json.loads((tmp_path / "other" / "results.json").read_text())["due_dates"]
    assert (told["engine"], told["batch_size"]) == ("vllm 0.33.0", 512)
    assert told["model"] == json.loads((tmp_path / "own" / "results.json").read_text())["due_dates"]["model"]


def test_what_it_cannot_do_is_told(base: Path, stand_in: None, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vLLM does not load it.*no such kernel"):
        evaluate.run(base, out=tmp_path / "a", dtype="fp16", engine="vllm", **QUICK)
    with pytest.raises(RecipeError, match="only writes texts, and rte"):
        evaluate.run(base, out=tmp_path / "b", engine="vllm", **QUICK | {"tasks": ["rte"]})
    recipe = tiny_recipe(base, tmp_path / "run", train={"max_steps": 1})
    train.run(recipe, quiet=True)
    with pytest.raises(RecipeError, match="merge it first"):
        evaluate.run(recipe.run_path, engine="vllm", **QUICK)


def test_without_the_package_its_extra_is_named(base: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vllm is installed")
    with pytest.raises(ResourceError, match=r"--engine vllm needs the package vllm.*neuroada-cli\[vllm\]"):
        evaluate.run(base, out=tmp_path / "a", engine="vllm", **QUICK)
