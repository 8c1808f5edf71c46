"""What makes this base this base: enough to refuse any other, quick enough to take of 13 GB.

The fingerprint holds the config's sizes in clear (so that a difference can be named), a hash over every
tensor's name, shape and dtype, and a hash over the tensors' contents: small ones in full, large ones in
blocks spread over them. How the folder is cut into shards does not matter.
"""

from __future__ import annotations

import hashlib
import json
import math
from io import BufferedReader
from pathlib import Path
from typing import Any

from neuroada_cli.files.safetensors_header import TensorInfo
from neuroada_cli.hub.resolve import read_config
from neuroada_cli.hub.weights import Weights, open_weights

FORMAT = 1
WHOLE_BYTES = 1 << 20  # tensors up to here are hashed in full
BLOCK_BYTES = 4096
BLOCKS = 16  # per larger tensor, the first and the last among them

# The keys that decide which function the weights compute; not names, versions, dtypes or generation habits.
CONFIG_KEYS = (
    "model_type",
    "hidden_size",
    "n_embd",
    "d_model",
    "num_hidden_layers",
    "n_layer",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "vocab_size",
    "hidden_act",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "tie_word_embeddings",
)


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
        "config": {key: config[key] for key in CONFIG_KEYS if key in config},
        "tensors": len(weights.names),
        "parameters": parameters,
        "layout": layout.hexdigest(),
        "content": content.hexdigest(),
    }


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
