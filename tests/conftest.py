"""Shared fixtures: tiny models with random weights, and where the real data sets lie."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# Threads that wait for each other sleep at once: where the tests' processes are more than the cores, spinning
# takes ten times the work itself. OpenMP reads it when torch loads it.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

torch.set_num_threads(2)
# The first backward pass starts torch's threads for devices. Over fake tensors, builds for CUDA take it that
# there is one, and no forked child can compute a gradient any more.
torch.ones(1, requires_grad=True).sum().backward()
# what a shell that starts tests in the background has ignored (`&`, nohup) children would ignore, too
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """One cache for all processes of a run of the tests, empty at first: what an earlier run, or the user,
    has kept must not change what is tested, and no test writes into it.
    """
    if not hasattr(config, "workerinput"):
        os.environ["NEUROADA_CACHE"] = tempfile.mkdtemp(prefix="neuroada-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["NEUROADA_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest begins, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_suites.py")


def pico_llama(tied: bool = False, vocabulary: int = 96, **changes: object) -> LlamaForCausalLM:
    settings: dict[str, object] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def pico_gpt2(**changes: object) -> GPT2LMHeadModel:
    settings: dict[str, object] = {
        "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "initializer_range": 0.2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**(settings | changes))).eval()


def pico_bert(**changes: object) -> BertForSequenceClassification:
    settings: dict[str, object] = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "num_labels": 2, "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**(settings | changes))).eval()


PICO_MODELS = {"llama": pico_llama, "gpt2": pico_gpt2, "bert": pico_bert}


@pytest.fixture(params=sorted(PICO_MODELS))
def pico(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny Llama, GPT-2 (Conv1D) and BERT classifier in turn, fp32."""
    return PICO_MODELS[request.param]()


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return pico_llama()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data sets beside the checkout; tests that need it skip without it."""
    folder = Path(os.environ.get("NEUROADA_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(
            f"needs the real data sets: no {folder.name}/ beside the checkout, $NEUROADA_SHARED unset"
        )
    return folder
