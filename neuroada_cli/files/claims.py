"""Whether a config can be that of the tensors beside it, by its counts alone and before torch is there.

A config is foreign text: one that asks for a thousand layers keeps a machine busy for minutes before the
first of them is missed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from neuroada_cli.errors import ModelError
from neuroada_cli.files import strict_json
from neuroada_cli.files.folders import CONFIG
from neuroada_cli.files.safetensors_header import TensorInfo
from neuroada_cli.files.shards import headers

MAX_BYTES = 16 << 20
LAYERS = re.compile(r"(num_|n_)?(hidden_|encoder_|decoder_)*(layers?|blocks)|depth")
# in the names of what tokens are looked up in, and of what places or patches are
TOKENS, PLACES = re.compile(r"embed|wte|tok|word|vocab|shared|lm_head"), re.compile(r"position|patch|type")
NUMBERED = re.compile(r"(?:^|\.)(\d+)\.")
# A few models share one stored block among many layers (ALBERT), so only far more layers are impossible.
TIMES, MORE = 4, 64
MOST = {"num_labels": 1 << 16, "max_position_embeddings": 1 << 26, "n_positions": 1 << 26}
# Sizes of layers, and numbers of their parts. Some configs keep such a size for a part that they go without,
# so only one far beyond every stored tensor is impossible.
SIZES = re.compile(
    r"\w*(hidden|intermediate|head|ffn|embed|embedding|inner|state)_(size|dim)s?|n_embd|n_inner|d_model|d_ff|d_kv"
    r"|\w*(heads|experts)|n_heads?"
)
TIMES_LONGEST, MORE_THAN = 64, 4096
MEND = "download config and weights once more"


def look(folder: Path) -> None:
    """Raises ModelError as `refuse_impossible` does. Whatever else is wrong is left to those who read it."""
    config, found = None, None
    with suppress(OSError, ValueError, ModelError):
        file = folder / CONFIG
        config = strict_json.parse(file.read_bytes()) if file.stat().st_size <= MAX_BYTES else None
        found = headers(folder)
    if isinstance(config, Mapping) and found is not None:
        refuse_impossible(config, found[0], folder)


def refuse_impossible(config: Mapping[str, Any], infos: Mapping[str, TensorInfo], folder: Path) -> None:
    """Raises ModelError for a config, or a nested part of one, that asks for far more layers than the files
    hold, for a vocabulary that none of their tensors has, for sizes far beyond them, or for counts that no
    model has.

    Files without embeddings of tokens need no vocabulary: BEiT's configs name that of its pretraining.
    """
    blocks = _blocks(infos)
    reads = any(_of_tokens(name) and len(info.shape) == 2 for name, info in infos.items())
    longest = max((max(info.shape, default=0) for info in infos.values()), default=0)
    for key, count in _counts(config):
        name = key.rpartition(".")[2]
        said = None
        if LAYERS.fullmatch(name) and count > TIMES * blocks + MORE:
            said = f"the files hold {blocks:,} numbered blocks"
        elif name == "vocab_size" and count > longest and reads:
            said = f"the largest stored tensor has {longest:,} rows"
        elif SIZES.fullmatch(name) and count > TIMES_LONGEST * longest + MORE_THAN:
            said = f"the longest side of a stored tensor is {longest:,}"
        elif count > MOST.get(name, count):
            said = "no model has so many"
        elif count < 0 and (LAYERS.fullmatch(name) or name == "vocab_size"):
            said = "no model has so few"
        if said is not None:
            raise ModelError(f"{key} is {count:,}, but {said}", str(folder / CONFIG), MEND)


def _of_tokens(name: str) -> bool:
    return bool(TOKENS.search(name)) and not PLACES.search(name)


def _blocks(names: Iterable[str]) -> int:
    """How many numbered blocks the longest list in the files has."""
    lists: dict[str, set[str]] = {}
    for name in names:
        for found in NUMBERED.finditer(name):
            lists.setdefault(name[: found.start(1)], set()).add(found[1])
    return max((len(numbers) for numbers in lists.values()), default=0)


def _counts(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value, f"{path}{key}.")
        elif type(value) is int:
            yield f"{path}{key}", value
