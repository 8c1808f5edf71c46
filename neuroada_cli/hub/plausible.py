"""Whether a config can be that of the tensors beside it, before anything is built as large as it says.

A config is foreign text: one that asks for a thousand layers keeps a machine busy for minutes before the
first of them is missed. So counts are compared with what the files hold, and building is given up once it has
made far more parameters than they could fill.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from neuroada_cli.errors import ModelError
from neuroada_cli.hub.weights import Weights

LAYERS = re.compile(r"(num_|n_)?(hidden_|encoder_|decoder_)*(layers?|blocks)|depth")
# in the names of what tokens are looked up in, and of what places or patches are
TOKENS, PLACES = re.compile(r"embed|wte|tok|word|vocab|shared|lm_head"), re.compile(r"position|patch|type")
NUMBERED = re.compile(r"(?:^|\.)(\d+)\.")
# A few models share one stored block among many layers (ALBERT), so only far more layers are impossible.
TIMES, MORE = 4, 64
MOST = {"num_labels": 1 << 16, "max_position_embeddings": 1 << 26, "n_positions": 1 << 26}
# Parameters per stored tensor, where files hold several as one, and as many beside them.
PARAMETERS, SPARE = 8, 2000
MEND = "download config and weights once more"


def refuse_impossible(config: Mapping[str, Any], weights: Weights) -> None:
    """Raises ModelError for a config, or a nested part of one, that asks for far more layers than the files
    hold, for a vocabulary that none of their tensors has, or for counts that no model has.

    Files without embeddings of tokens need no vocabulary: BEiT's configs name that of its pretraining.
    """
    blocks = _blocks(weights)
    longest = max((max(weights.info(name).shape, default=0) for name in weights), default=0)
    reads = any(_of_tokens(name) and len(weights.info(name).shape) == 2 for name in weights)
    for key, count in _counts(config):
        name = key.rpartition(".")[2]
        said = None
        if LAYERS.fullmatch(name) and count > TIMES * blocks + MORE:
            said = f"the files hold {blocks:,} numbered blocks"
        elif name == "vocab_size" and count > longest and reads:
            said = f"the largest stored tensor has {longest:,} rows"
        elif count > MOST.get(name, count):
            said = "no model has so many"
        if said is not None:
            raise ModelError(f"{key} is {count:,}, but {said}", str(weights.folder / "config.json"), MEND)


def refuse_other_shapes(
    graph: nn.Module, weights: Weights, stored: Mapping[str, str], made_anew: Callable[[str], bool]
) -> None:
    """Raises ModelError naming the first parameter that the files hold in another shape than the config says.

    stored     parameter -> the tensor that is this very parameter
    made_anew  whether one of another shape is no fault, since it is made anew (a head)
    """
    for name, parameter in graph.named_parameters():
        if name not in stored or made_anew(name):
            continue
        shape = weights.info(stored[name]).shape
        if shape != tuple(parameter.shape) and weights.info(stored[name]).dtype.is_floating_point:
            raise ModelError(
                f"{stored[name]} has the shape {list(shape)}, by config.json it is {list(parameter.shape)}",
                str(weights.folder),
                MEND,
            )


@contextmanager
def bounded(weights: Weights) -> Iterator[None]:
    """Inside, building a model that has far more parameters than the files have tensors is given up.

    Raises ModelError.
    """
    most, made = PARAMETERS * len(weights.names) + SPARE, 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise ModelError(
                f"asks for more than {most:,} parameters, the files hold {len(weights.names):,} tensors",
                str(weights.folder / "config.json"),
                MEND,
            )

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _of_tokens(name: str) -> bool:
    return bool(TOKENS.search(name)) and not PLACES.search(name)


def _blocks(weights: Weights) -> int:
    """How many numbered blocks the longest list in the files has."""
    lists: dict[str, set[str]] = {}
    for name in weights:
        for found in NUMBERED.finditer(name):
            lists.setdefault(name[: found.start(1)], set()).add(found[1])
    return max((len(numbers) for numbers in lists.values()), default=0)


def _counts(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value, f"{path}{key}.")
        elif type(value) is int:
            yield f"{path}{key}", value
