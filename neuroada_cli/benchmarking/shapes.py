"""Model shapes with random weights, so that a bench needs no download.

A step's time and memory depend on shapes and data types, not on what a model knows. One thing does differ:
the inputs that random weights choose are spread evenly, where a trained model's choices cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from neuroada_cli.errors import RecipeError, ResourceError, nearest
from neuroada_cli.machine import collector, narrow_products

Kind = Literal["generation", "classification"]


@dataclass(frozen=True)
class Shape:
    """family: transformers' name of the architecture; sizes: its configuration."""

    family: str
    sizes: dict[str, Any]
    kind: Kind = "generation"


def _llama(hidden: int, inner: int, layers: int, heads: int, vocabulary: int, **more: Any) -> Shape:
    return Shape("llama", _decoder(hidden, inner, layers, heads, vocabulary) | more)


def _decoder(hidden: int, inner: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }


SHAPES: dict[str, Shape] = {
    "llama-7b": _llama(4096, 11008, 32, 32, 32000),
    # one block without its vocabulary's share of a step: the strictest reading of "per layer"
    "llama-7b-block": _llama(4096, 11008, 1, 32, 256),
    "llama3-8b-block": _llama(4096, 14336, 1, 32, 256, num_key_value_heads=8),
    "llama-13b": _llama(5120, 13824, 40, 40, 32000),
    "llama2-7b": _llama(4096, 11008, 32, 32, 32000),
    "llama3-8b": _llama(4096, 14336, 32, 32, 128256, num_key_value_heads=8),
    "qwen2.5-7b": Shape(
        "qwen2", _decoder(3584, 18944, 28, 28, 152064) | {"num_key_value_heads": 4}
    ),
    "llama2-70b": _llama(8192, 28672, 80, 64, 32000, num_key_value_heads=8),
    "llama3-405b": _llama(16384, 53248, 126, 128, 128256, num_key_value_heads=8),
    "mixtral-8x7b": Shape(
        "mixtral", _decoder(4096, 14336, 32, 32, 32000)
        | {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "smollm2-135m": _llama(576, 1536, 30, 9, 49152, num_key_value_heads=3, tie_word_embeddings=True),
    "roberta-large": Shape(
        "roberta",
        {
            "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16,
            "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "num_labels": 2,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        },
        "classification",
    ),
    "pico": _llama(32, 48, 2, 4, 96, num_key_value_heads=2),
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """model in training mode; layers of depth blocks are there."""

    model: nn.Module
    kind: Kind
    layers: int
    depth: int


def check(name: str, layers: int | None) -> Shape:
    """The shape of that name. Raises RecipeError for an unknown one, or for more layers than it has."""
    if name not in SHAPES:
        raise RecipeError(f"{name!r} is not a built-in shape", "--model", nearest(name, SHAPES))
    depth = SHAPES[name].sizes["num_hidden_layers"]
    if layers is not None and not 1 <= layers <= depth:
        raise RecipeError(f"{layers} layers, but {name} has {depth}", "--layers", f"choose 1..{depth}")
    return SHAPES[name]


def build(
    name: str,
    layers: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Built:
    """The model with seeded random weights (`device="meta"`: none at all).

    Raises RecipeError as `check` does, ResourceError when it does not fit into memory.
    """
    shape = check(name, layers)
    depth = int(shape.sizes["num_hidden_layers"])
    config_class, model_class = _classes()[shape.family]
    config = config_class(**shape.sizes | {"num_hidden_layers": layers or depth})
    narrow_products.prepare(device, dtype)
    collector.as_usual()
    torch.manual_seed(seed)
    try:
        with torch.device(device), _default_dtype(dtype):
            model: nn.Module = model_class(config)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        raise ResourceError(
            f"{name} does not fit into memory", fix="give fewer --layers, or --dtype bf16"
        ) from error
    return Built(model.train(), shape.kind, layers or depth, depth)


def _classes() -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    import transformers as t

    return {
        "llama": (t.LlamaConfig, t.LlamaForCausalLM),
        "mixtral": (t.MixtralConfig, t.MixtralForCausalLM),
        "qwen2": (t.Qwen2Config, t.Qwen2ForCausalLM),
        "roberta": (t.RobertaConfig, t.RobertaForSequenceClassification),
    }


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters made inside take this type at once; never twice the memory for a cast."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
