"""What makes this base this base: enough to refuse any other, quick enough to take of 13 GB.

The fingerprint holds what of the config decides the computation in clear (so that a difference can be
named), a hash over every tensor's name, shape and dtype, and a hash over the tensors' contents: small ones in
full, large ones in blocks spread over them. Where a tensor is read anyway, when connections are chosen and
when they are merged, it is hashed in full, and those hashes are kept beside it ("hashes"). How the folder is
cut into shards does not matter.

The hashes tell models apart; they are no defence against someone who forges a base.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroada_cli.files.safetensors_header import TensorInfo
from neuroada_cli.foreign_text import short
from neuroada_cli.hub.computing import ABSENT, computing, difference
from neuroada_cli.hub.resolve import read_config
from neuroada_cli.hub.weights import Weights, open_weights

FORMAT = 2  # 1: of the config only FIRST_KEYS, and no hashes of whole tensors
WHOLE_BYTES = 1 << 20  # tensors up to here are hashed in full
BLOCK_BYTES = 4096
BLOCKS = 16  # per larger tensor, the first and the last among them
HASHES = "hashes"

# What the first format knew of a config.
FIRST_KEYS = (
    "model_type", "hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "num_attention_heads",
    "n_head", "num_key_value_heads", "head_dim", "intermediate_size", "n_inner", "ffn_dim", "vocab_size",
    "hidden_act", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon",
    "tie_word_embeddings",
)  # fmt: skip


def fingerprint(folder: Path, weights: Weights | None = None) -> dict[str, Any]:
    """{"format", "config": {key: value}, "tensors": n, "parameters": n, "layout": sha256, "content": sha256}.

    weights  of the folder, where they are open already
    Raises ModelError for a folder whose weights cannot be read.
    """
    config = read_config(folder)
    weights = open_weights(folder) if weights is None else weights
    layout, content = hashlib.sha256(), hashlib.sha256()
    parameters = 0
    open_files: dict[Path, BufferedReader] = {}
    try:
        for name in sorted(weights):
            info = weights.info(name)
            layout.update(json.dumps([name, str(info.dtype), list(info.shape)]).encode())
            parameters += math.prod(info.shape)
            if info.file not in open_files:
                open_files[info.file] = info.file.open("rb", buffering=0)  # type: ignore[assignment]
            _hash_samples(content, open_files[info.file], info)
    finally:
        for file in open_files.values():
            file.close()
    return {
        "format": FORMAT,
        "config": computing(config),
        "tensors": len(weights.names),
        "parameters": parameters,
        "layout": layout.hexdigest(),
        "content": content.hexdigest(),
    }


def hash_of(tensor: Tensor) -> str:
    """Of all bytes of a tensor as it is stored (XXH3, 128 bits: as fast as it is read)."""
    import xxhash

    flat = tensor.reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return xxhash.xxh3_128_hexdigest(data)


def what_differs(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """In words, where the base of a fingerprint (perhaps a stranger's) is not that of `ours`; None: nowhere.

    Whole tensors are compared where they are read, by `hash_of` against `theirs["hashes"]`.
    """
    config, first = ours["config"], theirs.get("format") == 1
    if first:
        config = {key: value for key, value in config.items() if key in FIRST_KEYS}
    odd = difference(theirs.get("config"), config, defaults=not first)
    if odd is not None:
        key, here, there = odd
        return f"its {key[:80]} is {_said(here)}, it was {_said(there)}"
    if theirs.get("layout") != ours["layout"]:
        return "its tensors have other names, shapes or data types"
    if theirs.get("content") != ours["content"]:
        return "its weights differ in content"
    return None


def _said(value: Any) -> str:
    return ABSENT if value is ABSENT else short(value)


def _hash_samples(content: Any, file: BufferedReader, info: TensorInfo) -> None:
    if info.nbytes <= WHOLE_BYTES:
        file.seek(info.offset)
        content.update(_read(file, info.nbytes))
        return
    stride = (info.nbytes - BLOCK_BYTES) // (BLOCKS - 1)
    for block in range(BLOCKS):
        begin = block * stride if block < BLOCKS - 1 else info.nbytes - BLOCK_BYTES
        file.seek(info.offset + begin)
        content.update(_read(file, BLOCK_BYTES))


def _read(file: BufferedReader, count: int) -> bytes:
    parts = []
    while count and (part := file.read(count)):  # an unbuffered read may stop early
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
